"""Attention as operators of PyTorch: torch.ops.flashmha.attend, its gradient, and others.

They have fake implementations and gradients, so that torch.compile(fullgraph=True), export and
FakeTensors work. flashmha.torch_ops calls them, or the C++ library past them.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from . import _native
from .errors import InvalidArgument, Unsupported

# Options of both operators, in the order of their schemas.
TENSORS = ("bias", "sinks", "mask", "alibi_slopes", "cu_seqlens_q", "cu_seqlens_k", "seqused_q",
           "seqused_k", "block_table", "rng_state")
VALUES = ("max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_left", "window_right",
          "top_left", "softcap", "dropout_p", "deterministic")
_SCHEMA = (", ".join(f"Tensor? {name}" for name in TENSORS) +
           ", SymInt max_seqlen_q, SymInt max_seqlen_k, float? softmax_scale, bool causal, "
           "SymInt window_left, SymInt window_right, bool top_left, float softcap, "
           "float dropout_p, bool deterministic")

are_deterministic = torch.are_deterministic_algorithms_enabled

_library = torch.library.Library("flashmha", "DEF")
_library.define(f"attend(Tensor q, Tensor k, Tensor v, {_SCHEMA}) -> (Tensor out, Tensor lse)")
# dbias and dsinks have no elements unless they are asked for.
_library.define("attend_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, "
                f"Tensor out, Tensor lse, {_SCHEMA}, bool needs_dbias, bool needs_dsinks) -> "
                "(Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)")
_library.define("attend_to_cache(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k, "
                "Tensor? v, Tensor? rotary_cos, Tensor? rotary_sin, bool rotary_interleaved, "
                "Tensor? positions, Tensor? cache_seqlens, Tensor? cache_batch_idx, "
                "Tensor? cache_leftpad, Tensor? block_table, SymInt num_splits, "
                "float? softmax_scale, bool causal, SymInt window_left, SymInt window_right, "
                "bool top_left, float softcap, Tensor? alibi_slopes, Tensor? bias, Tensor? mask, "
                "Tensor? sinks) -> (Tensor out, Tensor lse)")
_library.define("new_rng_state(Tensor q) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.define("rotary(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool interleaved, "
                "bool conjugate) -> Tensor")


def unit_stride(x: Optional[Tensor]) -> Optional[Tensor]:
    """x, or a copy of it whose last dimension has stride 1."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def statistics_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def new_out(q: Tensor, v: Tensor) -> Tensor:
    shape = q.shape
    if len(shape) not in (3, 4) or v.dim() == 0:
        raise InvalidArgument("[attention] q must be [batch, seqlen_q, num_heads_q, head_dim] or "
                              "[total_q, num_heads_q, head_dim], and v likewise; got q "
                              f"{list(shape)}, v {list(v.shape)}")
    if shape[-1] == v.shape[-1]:  # the quickest way to a tensor
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    return q.new_empty((*shape[:-1], v.shape[-1]))


def new_lse(q: Tensor) -> Tensor:
    shape = q.shape
    lse_shape = (shape[1], shape[0]) if len(shape) == 3 else (shape[0], shape[2], shape[1])
    return q.new_empty(lse_shape, dtype=statistics_dtype(q))


def new_results(q: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
    return new_out(q, v), new_lse(q)


def workspace(num_bytes: int, index: int) -> Tensor:
    """Memory of PyTorch's pool on a GPU: in its statistics, and in the pools of its graphs."""
    return torch.empty(((num_bytes + 3) // 4,), dtype=torch.int32,
                       device=torch.device("cuda", index))


def pool_of(q: Tensor) -> Any:
    """Where a call on q gets its workspace from."""
    return workspace if q.is_cuda else None


def _native_options(tensors: Tuple, values: Tuple) -> Dict[str, Any]:
    options = dict(zip(TENSORS, tensors))
    options.update(zip(VALUES, values))
    rng_state = options.pop("rng_state")
    if rng_state is not None:
        seed, offset = rng_state.tolist()
        options["seed"], options["offset"] = seed % 2**64, offset % 2**64
    if options["cu_seqlens_q"] is None:
        del options["max_seqlen_q"], options["max_seqlen_k"]
    return options


def _attend(q, k, v, *options):
    n = len(TENSORS)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    out, lse = new_results(q, v)
    _native.attend(q, k, v, out, lse, workspace=pool_of(q),
                   **_native_options(options[:n], options[n:]))
    return out, lse


def _attend_fake(q, k, v, *options):
    return new_results(q, v)


def new_gradients(q, k, v, bias, sinks, needs_dbias, needs_dsinks):
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
    n = len(TENSORS)
    dout, q, k, v = (unit_stride(x) for x in (dout, q, k, v))
    dlse = None if dlse is None else dlse.contiguous()
    native = _native_options(options[:n], options[n:])
    native["deterministic"] = native["deterministic"] or are_deterministic()
    gradients = new_gradients(q, k, v, options[0], options[1], needs_dbias, needs_dsinks)
    dq, dk, dv, dbias, dsinks = gradients
    _native.attend(q, k, v, out, lse, dout=dout, dlse=dlse, dq=dq, dk=dk, dv=dv,
                   dbias=dbias if needs_dbias else None, dsinks=dsinks if needs_dsinks else None,
                   workspace=pool_of(q), **native)
    return gradients


def _attend_backward_fake(dout, dlse, q, k, v, out, lse, *options):
    *options, needs_dbias, needs_dsinks = options
    return new_gradients(q, k, v, options[0], options[1], needs_dbias, needs_dsinks)


def _attend_to_cache(q, k_cache, v_cache, k, v, *options):
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    out, lse = new_results(q, v_cache)
    _native.attend_to_cache(q, k_cache, v_cache, out, lse, k, v, *options, pool_of(q))
    return out, lse


def _attend_to_cache_fake(q, k_cache, v_cache, *options):
    return new_results(q, v_cache)


def _new_rng_state(q):
    if not q.is_cuda:
        return torch.randint(2**63 - 1, (2,), dtype=torch.int64)
    if torch.cuda.is_current_stream_capturing():
        raise Unsupported(
            "[attention] dropout cannot be captured in a CUDA graph: its seed is a number of the "
            "host, so that every replay would drop the same. Capture with dropout 0, or leave "
            "attention out of the graph")
    generator = torch.cuda.default_generators[q.get_device()]
    offset = generator.get_offset()  # of the host, as the seed: nothing waits for the GPU
    generator.set_offset(offset + 4)
    return torch.tensor([signed(generator.initial_seed()), signed(offset)], dtype=torch.int64)


def _new_rng_state_fake(q):
    return torch.empty((2,), dtype=torch.int64, device="cpu")


def signed(value: int) -> int:
    """A number of 64 bits as int64 has it."""
    return (value + 2**63) % 2**64 - 2**63


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
                              ("new_rng_state", _new_rng_state, _new_rng_state_fake),
                              ("rotary", _rotary, _rotary_fake)):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _key)
    torch.library.register_fake(f"flashmha::{_name}", _fake, lib=_library)


# ---- gradients -----------------------------------------------------------------------------------


def _save_attend(ctx, inputs, output):
    q, k, v, *options = inputs
    n = len(TENSORS)
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
