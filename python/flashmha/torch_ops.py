"""Calls of attention on torch tensors.

A call that nobody watches (no compiler, mode, transform or tensor subclass) goes to the C++ library
directly, past PyTorch's dispatcher, which takes longer than a small attention. All others take the
operators of flashmha.torch_operators.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from . import _native
from . import torch_operators as operators
from .attention import CacheOptions
from .torch_operators import (
    TENSORS,
    VALUES,
    are_deterministic,
    new_gradients,
    new_lse,
    new_out,
    new_results,
    pool_of,
    signed,
    unit_stride,
    workspace,
)

__all__ = [
    "attend",
    "attend_backward",
    "attend_to_cache",
    "autocast",
    "is_plain_call",
    "new_rng_state",
    "quick_attend",
    "rotary",
]

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled
_len_dispatch_stack = torch._C._len_torch_dispatch_stack
_peek_interpreter = torch._C._functorch.peek_interpreter_stack


def is_plain_call(q: Tensor) -> bool:
    """Whether nobody watches this call: no compiler, tracer, mode, transform or tensor subclass."""
    return (not _is_compiling() and type(q) in _PLAIN_TYPES and (q.is_cuda or q.is_cpu) and
            _len_dispatch_stack() == 0 and _peek_interpreter() is None)


def autocast(*tensors: Tensor) -> Tuple[Tensor, ...]:
    """In an autocast region, floating tensors in its dtype, as for matrix products."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x
                 for x in tensors)


# ---- a small call without options ----------------------------------------------------------------

_attend_quickly = _native.attend_quickly
_empty_like = torch.empty_like
_contiguous = torch.contiguous_format
# A tensor of one element, expanded, for every shape of lse: empty_like is the quickest way to a new
# tensor, a third of what empty costs with a dtype.
_lse_templates: Dict[Tuple[torch.Size, int], Tensor] = {}


def _lse_template(q: Tensor) -> Tensor:
    shape = q.shape
    if len(_lse_templates) >= 1000:
        _lse_templates.clear()
    template = torch.empty((1,), dtype=torch.float32, device=q.device)
    template = template.expand((shape[0], shape[2], shape[1]))
    return _lse_templates.setdefault((shape, q.get_device()), template)


def _quick_lse(q: Tensor) -> Tensor:
    """An lse for a tensor of 4 dimensions with memory, whose sizes are numbers; not float64."""
    template = _lse_templates.get((q.shape, q.get_device()))
    if template is None:
        template = _lse_template(q)
    return _empty_like(template, memory_format=_contiguous)


class _QuickAttend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, softmax_scale, causal, window_left, window_right, softcap,
                deterministic):
        out, lse = _empty_like(q, memory_format=_contiguous), _quick_lse(q)
        done = _attend_quickly(q, k, v, out, lse, softmax_scale, causal, window_left, window_right,
                               softcap, workspace if q.is_cuda else None)
        assert done, "quick_attend looks before"
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = (softmax_scale, causal, window_left, window_right, softcap, deterministic)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        names = ("softmax_scale", "causal", "window_left", "window_right", "softcap",
                 "deterministic")
        gradients = _differentiate(*ctx.saved_tensors, None, None, dict(zip(names, ctx.options)),
                                   dout, dlse, (False, False))
        return (*gradients[:3], *(None for _ in names))


def quick_attend(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: Optional[float], causal: bool,
    window_left: int, window_right: int, softcap: float, deterministic: bool, needs_lse: bool,
) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
    """out and, if it is needed, lse of a call that nobody watches; None for all others.

    Small calls spend more time here than in the kernel: nothing is done twice.
    """
    if (not (type(q) is type(k) is type(v) is Tensor) or _is_compiling() or
            _len_dispatch_stack() != 0 or _peek_interpreter() is not None):
        return None
    on_gpu = q.is_cuda
    if (not (on_gpu or q.is_cpu) or q.dim() != 4 or v.dim() != 4 or
            _is_autocast_enabled("cuda" if on_gpu else "cpu")):
        return None
    if _is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        if q.size(0) == 0 or q.size(-1) != v.size(-1) or q.dtype is torch.float64:
            return None
        return _QuickAttend.apply(q, k, v, softmax_scale, causal, window_left, window_right,
                                  softcap, deterministic)
    out = _empty_like(q, memory_format=_contiguous)
    lse = _quick_lse(q) if needs_lse else None
    done = _attend_quickly(q, k, v, out, lse, softmax_scale, causal, window_left, window_right,
                           softcap, workspace if on_gpu else None)
    return (out, lse) if done else None


# ---- all others ----------------------------------------------------------------------------------


class _Attend(torch.autograd.Function):
    """The operator's gradient for plain calls, past the dispatcher."""

    @staticmethod
    def forward(ctx, q, k, v, bias, sinks, options):
        out, lse = new_results(q, v)
        _native.attend(q, k, v, out, lse, bias=bias, sinks=sinks, workspace=pool_of(q),
                       **options)
        ctx.save_for_backward(q, k, v, out, lse, bias, sinks)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        *gradients, dbias, dsinks = _differentiate(
            *ctx.saved_tensors, ctx.options, dout, dlse, ctx.needs_input_grad[3:5])
        return (*gradients, dbias, dsinks, None)


def _differentiate(q, k, v, out, lse, bias, sinks, options, dout, dlse, needed):
    """Gradients of q, k, v, bias and sinks; needed: whether of the last two."""
    if dout is None and dlse is None:
        return (None,) * 5
    dout = torch.zeros_like(out) if dout is None else unit_stride(dout)
    dlse = None if dlse is None else dlse.contiguous()
    if torch.is_grad_enabled():  # create_graph: the operator knows that this is the end
        given = _with_rng_state(dict(options, bias=bias, sinks=sinks))
        dq, dk, dv, dbias, dsinks = torch.ops.flashmha.attend_backward(
            dout, dlse, q, k, v, out, lse, *_positional(given), *needed)
    else:
        if are_deterministic():
            options = dict(options, deterministic=True)
        dq, dk, dv, dbias, dsinks = new_gradients(q, k, v, bias, sinks, *needed)
        _native.attend(q, k, v, out, lse, dout=dout, dlse=dlse, dq=dq, dk=dk, dv=dv, bias=bias,
                       sinks=sinks, dbias=dbias if needed[0] else None,
                       dsinks=dsinks if needed[1] else None, workspace=pool_of(q), **options)
    return (dq, dk, dv, dbias.to(bias.dtype) if needed[0] else None,
            dsinks.to(sinks.dtype) if needed[1] else None)


_DEFAULTS = dict(max_seqlen_q=0, max_seqlen_k=0, softmax_scale=None, causal=False, window_left=-1,
                 window_right=-1, top_left=False, softcap=0.0, dropout_p=0.0, deterministic=False)


def _positional(options: Dict[str, Any]) -> Tuple:
    """Options as the operators take them: all of them, in order."""
    return (*(options.get(name) for name in TENSORS),
            *(options.get(name, _DEFAULTS[name]) for name in VALUES))


def attend(q: Tensor, k: Tensor, v: Tensor, options: Dict[str, Any]) -> Tuple[Tensor, Tensor]:
    """out and lse; options are the keywords of flashmha._native.attend, or rng_state for seeds.

    The dictionary is used up.
    """
    q, k, v = autocast(q, k, v)
    if is_plain_call(q):
        rng_state = options.pop("rng_state", None)
        if rng_state is not None:
            seed, offset = rng_state.tolist()
            options["seed"], options["offset"] = seed % 2**64, offset % 2**64
        bias, sinks = options.pop("bias", None), options.pop("sinks", None)
        if torch.is_grad_enabled() and (
                q.requires_grad or k.requires_grad or v.requires_grad or
                (bias is not None and bias.requires_grad) or
                (sinks is not None and sinks.requires_grad)):
            return _Attend.apply(q, k, v, bias, sinks, options)
        out, lse = new_results(q, v)
        _native.attend(q, k, v, out, lse, bias=bias, sinks=sinks, workspace=pool_of(q), **options)
        return out, lse
    return torch.ops.flashmha.attend(q, k, v, *_positional(_with_rng_state(options)))


def _with_rng_state(options: Dict[str, Any]) -> Dict[str, Any]:
    """Options with seed and offset as a tensor, as the operators take them."""
    seed, offset = options.pop("seed", 0), options.pop("offset", 0)
    if options.get("dropout_p", 0.0) > 0 and "rng_state" not in options:
        options["rng_state"] = torch.tensor([signed(seed), signed(offset)], dtype=torch.int64)
    return options


def new_rng_state(q: Tensor) -> Tensor:
    """A fresh (seed, offset) of dropout, int64 [2] on the CPU, for a call on q.

    From PyTorch's generator for the device of q, so that torch.manual_seed, fork_rng, checkpointing
    and the trackers of tensor-parallel programs have their effect.
    """
    q = q.detach()
    return operators._new_rng_state(q) if is_plain_call(q) else torch.ops.flashmha.new_rng_state(q)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rotated x; cos and sin float32 [num_positions, rotary_dim / 2]; positions int32."""
    return torch.ops.flashmha.rotary(x, cos, sin, positions, interleaved, False)


def attend_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
                    options: Dict[str, Any]) -> Tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; options as for attend."""
    return torch.ops.flashmha.attend_backward(dout, None, q, k, v, out, lse,
                                              *_positional(options), False, False)[:3]


def attend_to_cache(q: Tensor, k_cache: Tensor, v_cache: Tensor, options: CacheOptions,
                    needs_lse: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """out and, if it is needed, lse; without gradient."""
    if is_plain_call(q):
        out, lse = new_out(q, v_cache), new_lse(q) if needs_lse else None
        _native.attend_to_cache(q, k_cache, v_cache, out, lse, *options, pool_of(q))
        return out, lse
    with torch.no_grad():
        return torch.ops.flashmha.attend_to_cache(q, k_cache, v_cache, *options)
