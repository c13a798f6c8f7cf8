"""Attention as operators of PyTorch: torch.ops.flashmha.attend and its gradient.

The operators have fake implementations and gradients, so that torch.compile(fullgraph=True), export
and FakeTensors work. A call that needs none of this (no gradient, no compiler, plain tensors) goes
to the C++ library directly, past PyTorch's dispatcher.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from . import _native
from .errors import Unsupported

# Options of both operators, in the order of their schemas.
_TENSORS = ("bias", "sinks", "mask", "alibi_slopes", "cu_seqlens_q", "cu_seqlens_k", "seqused_q",
            "seqused_k", "block_table", "rng_state")
_VALUES = ("max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_left",
           "window_right", "top_left", "softcap", "dropout_p", "deterministic")
_SCHEMA = (", ".join(f"Tensor? {name}" for name in _TENSORS) +
           ", SymInt max_seqlen_q, SymInt max_seqlen_k, float? softmax_scale, bool causal, "
           "SymInt window_left, SymInt window_right, bool top_left, float softcap, "
           "float dropout_p, bool deterministic")

_library = torch.library.Library("flashmha", "DEF")
_library.define(f"attend(Tensor q, Tensor k, Tensor v, {_SCHEMA}) -> (Tensor out, Tensor lse)")
# dbias and dsinks have no elements unless they are asked for.
_library.define("attend_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, "
                f"Tensor out, Tensor lse, {_SCHEMA}, bool needs_dbias, bool needs_dsinks) -> "
                "(Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)")
_library.define("attend_to_cache(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k, "
                "Tensor? v, Tensor? rotary_cos, Tensor? rotary_sin, bool rotary_interleaved, "
                "Tensor? cache_seqlens, Tensor? cache_batch_idx, Tensor? cache_leftpad, "
                "Tensor? block_table, Tensor? alibi_slopes, SymInt num_splits, "
                "float? softmax_scale, bool causal, SymInt window_left, SymInt window_right, "
                "float softcap) -> (Tensor out, Tensor lse)")
_library.define("rotary(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool interleaved, "
                "bool conjugate) -> Tensor")


def unit_stride(x: Optional[Tensor]) -> Optional[Tensor]:
    """x, or a copy of it whose last dimension has stride 1."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def statistics_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _new_results(q: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
    shape, head_dim_v = q.shape, v.shape[-1]
    lse_shape = (shape[1], shape[0]) if len(shape) == 3 else (shape[0], shape[2], shape[1])
    if head_dim_v == shape[-1]:  # the quicker of two ways to say the same
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    else:
        out = q.new_empty((*shape[:-1], head_dim_v))
    return out, torch.empty(lse_shape, dtype=statistics_dtype(q), device=q.device)


def _native_options(tensors: Tuple, values: Tuple) -> Dict[str, Any]:
    options = dict(zip(_TENSORS, tensors))
    options.update(zip(_VALUES, values))
    rng_state = options.pop("rng_state")
    if rng_state is not None:
        seed, offset = rng_state.tolist()
        options["seed"], options["offset"] = seed % 2**64, offset % 2**64
    if options["cu_seqlens_q"] is None:
        del options["max_seqlen_q"], options["max_seqlen_k"]
    return options


def _attend(q, k, v, *options):
    n = len(_TENSORS)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    out, lse = _new_results(q, v)
    _native.attend(q, k, v, out, lse, **_native_options(options[:n], options[n:]))
    return out, lse


def _attend_fake(q, k, v, *options):
    return _new_results(q, v)


def _new_gradients(q, k, v, bias, sinks, needs_dbias, needs_dsinks):
    empty = torch.empty_like
    contiguous = torch.contiguous_format
    statistics = statistics_dtype(q)

    def of(x, needed):
        return (x.new_empty(x.shape, dtype=statistics) if needed
                else q.new_empty((0,), dtype=statistics))

    return (*(empty(x, memory_format=contiguous) for x in (q, k, v)), of(bias, needs_dbias),
            of(sinks, needs_dsinks))


def _attend_backward(dout, dlse, q, k, v, out, lse, *options):
    *options, needs_dbias, needs_dsinks = options
    n = len(_TENSORS)
    dout, q, k, v = (unit_stride(x) for x in (dout, q, k, v))
    dlse = None if dlse is None else dlse.contiguous()
    gradients = _new_gradients(q, k, v, options[0], options[1], needs_dbias, needs_dsinks)
    dq, dk, dv, dbias, dsinks = gradients
    _native.attend(q, k, v, out, lse, dout=dout, dlse=dlse, dq=dq, dk=dk, dv=dv,
                   dbias=dbias if needs_dbias else None, dsinks=dsinks if needs_dsinks else None,
                   **_native_options(options[:n], options[n:]))
    return gradients


def _attend_backward_fake(dout, dlse, q, k, v, out, lse, *options):
    *options, needs_dbias, needs_dsinks = options
    return _new_gradients(q, k, v, options[0], options[1], needs_dbias, needs_dsinks)


def _attend_to_cache(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, rotary_interleaved,
                     cache_seqlens, cache_batch_idx, cache_leftpad, block_table, alibi_slopes,
                     num_splits, softmax_scale, causal, window_left, window_right, softcap):
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    out, lse = _new_results(q, v_cache)
    _native.attend_to_cache(
        q, k_cache, v_cache, out, lse, k=k, v=v, rotary_cos=rotary_cos, rotary_sin=rotary_sin,
        rotary_interleaved=rotary_interleaved, cache_seqlens=cache_seqlens,
        cache_batch_idx=cache_batch_idx, cache_leftpad=cache_leftpad, block_table=block_table,
        num_splits=num_splits, softmax_scale=softmax_scale, causal=causal,
        window_left=window_left, window_right=window_right, softcap=softcap,
        alibi_slopes=alibi_slopes)
    return out, lse


def _attend_to_cache_fake(q, k_cache, v_cache, *options):
    return _new_results(q, v_cache)


def _rotary(x, cos, sin, positions, interleaved, conjugate):
    x = unit_stride(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _native.rotary(x, cos, sin, positions.contiguous(), y, interleaved=interleaved,
                   conjugate=conjugate)
    return y


def _rotary_fake(x, cos, sin, positions, interleaved, conjugate):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _kernel, _fake in (("attend", _attend, _attend_fake),
                              ("attend_backward", _attend_backward, _attend_backward_fake),
                              ("attend_to_cache", _attend_to_cache, _attend_to_cache_fake),
                              ("rotary", _rotary, _rotary_fake)):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _key)
    torch.library.register_fake(f"flashmha::{_name}", _fake, lib=_library)


# ---- gradients -----------------------------------------------------------------------------------


def _save_attend(ctx, inputs, output):
    q, k, v, *options = inputs
    n = len(_TENSORS)
    ctx.save_for_backward(q, k, v, *output, *options[:n])
    ctx.values = options[n:]
    ctx.set_materialize_grads(False)


def _differentiate_attend(ctx, dout, dlse):
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    needs_dbias, needs_dsinks = ctx.needs_input_grad[3:5]
    if dout is None and dlse is None:
        return (None,) * len(ctx.needs_input_grad)
    if dout is None:
        dout = torch.zeros_like(out)
    dq, dk, dv, dbias, dsinks = torch.ops.flashmha.attend_backward(
        dout, dlse, q, k, v, out, lse, *tensors, *ctx.values, needs_dbias, needs_dsinks)
    bias, sinks = tensors[:2]
    return (dq, dk, dv, dbias.to(bias.dtype) if needs_dbias else None,
            dsinks.to(sinks.dtype) if needs_dsinks else None,
            *(None for _ in range(len(ctx.needs_input_grad) - 5)))


torch.library.register_autograd("flashmha::attend", _differentiate_attend,
                                setup_context=_save_attend, lib=_library)


def _no_second_derivative(ctx, *_):
    raise Unsupported("[attention] has no second derivative: call backward without create_graph")


def _no_derivative(ctx, *_):
    raise Unsupported("[attention_with_kvcache] has no gradient: use torch.no_grad(), or attention")


def _save_nothing(ctx, inputs, output):
    pass


torch.library.register_autograd("flashmha::attend_backward", _no_second_derivative,
                                setup_context=_save_nothing, lib=_library)


def _save_rotary(ctx, inputs, output):
    _, cos, sin, positions, ctx.interleaved, ctx.conjugate = inputs
    ctx.save_for_backward(cos, sin, positions)


def _differentiate_rotary(ctx, dy):
    cos, sin, positions = ctx.saved_tensors
    dx = torch.ops.flashmha.rotary(dy, cos, sin, positions, ctx.interleaved, not ctx.conjugate)
    return dx, None, None, None, None, None


torch.library.register_autograd("flashmha::rotary", _differentiate_rotary,
                                setup_context=_save_rotary, lib=_library)


class _Attend(torch.autograd.Function):
    """The operator's gradient for plain calls, past the dispatcher."""

    @staticmethod
    def forward(ctx, q, k, v, bias, sinks, options):
        out, lse = _new_results(q, v)
        _native.attend(q, k, v, out, lse, bias=bias, sinks=sinks, **options)
        ctx.save_for_backward(q, k, v, out, lse, bias, sinks)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, out, lse, bias, sinks = ctx.saved_tensors
        if dout is None and dlse is None:
            return (None,) * 6
        dout = torch.zeros_like(out) if dout is None else unit_stride(dout)
        dlse = None if dlse is None else dlse.contiguous()
        needs_dbias, needs_dsinks = ctx.needs_input_grad[3:5]
        if torch.is_grad_enabled():  # create_graph: the operator knows that this is the end
            options = _with_rng_state(dict(ctx.options, bias=bias, sinks=sinks))
            dq, dk, dv, dbias, dsinks = torch.ops.flashmha.attend_backward(
                dout, dlse, q, k, v, out, lse, *_positional(options), needs_dbias, needs_dsinks)
        else:
            dq, dk, dv, dbias, dsinks = _new_gradients(q, k, v, bias, sinks, needs_dbias,
                                                       needs_dsinks)
            _native.attend(q, k, v, out, lse, dout=dout, dlse=dlse, dq=dq, dk=dk, dv=dv, bias=bias,
                           sinks=sinks, dbias=dbias if needs_dbias else None,
                           dsinks=dsinks if needs_dsinks else None, **ctx.options)
        return (dq, dk, dv, dbias.to(bias.dtype) if needs_dbias else None,
                dsinks.to(sinks.dtype) if needs_dsinks else None, None)


# ---- calls ---------------------------------------------------------------------------------------

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_len_dispatch_stack = torch._C._len_torch_dispatch_stack
_peek_interpreter = torch._C._functorch.peek_interpreter_stack


def is_plain_call(q: Tensor) -> bool:
    """Whether nobody watches this call: no compiler, tracer, mode, transform or tensor subclass."""
    return (not torch.compiler.is_compiling() and type(q) in _PLAIN_TYPES and
            q.device.type in ("cpu", "cuda") and _len_dispatch_stack() == 0 and
            _peek_interpreter() is None)


def autocast(*tensors: Tensor) -> Tuple[Tensor, ...]:
    """In an autocast region, floating tensors in its dtype, as for matrix products."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x
                 for x in tensors)


_DEFAULTS = dict(max_seqlen_q=0, max_seqlen_k=0, softmax_scale=None, causal=False, window_left=-1,
                 window_right=-1, top_left=False, softcap=0.0, dropout_p=0.0, deterministic=False)


def _positional(options: Dict[str, Any]) -> Tuple:
    """Options as the operators take them: all of them, in order."""
    return (*(options.get(name) for name in _TENSORS),
            *(options.get(name, _DEFAULTS[name]) for name in _VALUES))


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
        out, lse = _new_results(q, v)
        _native.attend(q, k, v, out, lse, bias=bias, sinks=sinks, **options)
        return out, lse
    return torch.ops.flashmha.attend(q, k, v, *_positional(_with_rng_state(options)))


def _with_rng_state(options: Dict[str, Any]) -> Dict[str, Any]:
    """Options with seed and offset as a tensor, as the operators take them."""
    seed, offset = options.pop("seed", 0), options.pop("offset", 0)
    if options.get("dropout_p", 0.0) > 0 and "rng_state" not in options:
        signed = [(value + 2**63) % 2**64 - 2**63 for value in (seed, offset)]
        options["rng_state"] = torch.tensor(signed, dtype=torch.int64)
    return options


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rotated x; cos and sin float32 [num_positions, rotary_dim / 2]; positions int32."""
    return torch.ops.flashmha.rotary(x, cos, sin, positions, interleaved, False)


def attend_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
                    options: Dict[str, Any]) -> Tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; options as for attend."""
    return torch.ops.flashmha.attend_backward(dout, None, q, k, v, out, lse,
                                              *_positional(options), False, False)[:3]


def attend_to_cache(q: Tensor, *arguments: Any) -> Tuple[Tensor, Tensor]:
    """out and lse; the arguments of the operator attend_to_cache."""
    if is_plain_call(q):
        return _attend_to_cache(q, *arguments)
    return torch.ops.flashmha.attend_to_cache(q, *arguments)
