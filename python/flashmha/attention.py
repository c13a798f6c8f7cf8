"""Attention for arrays of any library.

Layouts: q [batch, seqlen_q, num_heads_q, head_dim], k [batch, seqlen_k, num_heads_kv, head_dim],
v [batch, seqlen_k, num_heads_kv, head_dim_v], out [batch, seqlen_q, num_heads_q, head_dim_v], lse
float32 [batch, num_heads_q, seqlen_q]. Ragged (cu_seqlens given): q [total_q, num_heads_q,
head_dim], k and v likewise, lse [num_heads_q, total_q]. Elements are float32, bfloat16 or float16;
strides are free but for the last dimension. Nothing is copied.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, Optional, Tuple, Union

from . import _native, arrays

__all__ = ["Gradients", "attention", "attention_backward", "attention_with_kvcache"]

Array = Any


class Gradients(NamedTuple):
    """Gradients of attention: dq, dk, dv with the inputs' shapes; dbias, dsinks where given."""

    dq: Array
    dk: Array
    dv: Array
    dbias: Optional[Array] = None
    dsinks: Optional[Array] = None


class CacheOptions(NamedTuple):
    """What _native.attend_to_cache and PyTorch's operator of that name take after the cache."""

    k: Optional[Array] = None
    v: Optional[Array] = None
    rotary_cos: Optional[Array] = None
    rotary_sin: Optional[Array] = None
    rotary_interleaved: bool = False
    positions: Optional[Array] = None
    cache_seqlens: Optional[Array] = None
    cache_batch_idx: Optional[Array] = None
    cache_leftpad: Optional[Array] = None
    block_table: Optional[Array] = None
    num_splits: int = 0
    softmax_scale: Optional[float] = None
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    top_left: bool = False
    softcap: float = 0.0
    alibi_slopes: Optional[Array] = None
    bias: Optional[Array] = None
    mask: Optional[Array] = None
    sinks: Optional[Array] = None


def _options(causal, window_size, align, dropout, **others):
    left, right = _window(window_size)
    p, seed, offset = dropout
    return dict(causal=bool(causal), window_left=left, window_right=right,
                top_left=_is_top_left(align), dropout_p=p, seed=seed, offset=offset, **others)


def _is_top_left(align):
    if align not in ("bottom_right", "top_left"):
        raise ValueError(f"align must be 'bottom_right' or 'top_left'; got {align!r}")
    return align == "top_left"


def _window(window_size):
    left, right = window_size
    return (-1 if left is None else operator.index(left),
            -1 if right is None else operator.index(right))


_torch = None  # flashmha.torch_ops, once a tensor of PyTorch came


def _torch_ops():
    global _torch
    if _torch is None:
        from . import torch_ops

        _torch = torch_ops
    return _torch


def _result_shapes(q, v, ragged):
    out = (*q.shape[:-1], v.shape[-1])
    if ragged:
        return out, (q.shape[1], q.shape[0])
    return out, (q.shape[0], q.shape[2], q.shape[1])


def _require_rank(q, v, rank):
    for name, array in (("q", q), ("v", v)):
        if not (arrays.is_torch(array) or hasattr(array, "shape") and hasattr(array, "dtype")):
            raise TypeError(f"[attention] {name} must be an array of NumPy, PyTorch, JAX, CuPy or "
                            f"any other library with DLPack; got {type(array).__name__}")
    if len(q.shape) != rank or len(v.shape) < 3:
        from .errors import InvalidArgument

        axes = ("[total_q, num_heads_q, head_dim]" if rank == 3 else
                "[batch, seqlen_q, num_heads_q, head_dim]")
        raise InvalidArgument(f"[attention] q must be {axes}, and v likewise; got q "
                              f"{list(q.shape)}, v {list(v.shape)}")


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[Optional[int], Optional[int]] = (-1, -1),
    align: str = "bottom_right",
    softcap: float = 0.0,
    alibi_slopes: Optional[Array] = None,
    bias: Optional[Array] = None,
    mask: Optional[Array] = None,
    sinks: Optional[Array] = None,
    dropout: Tuple[float, int, int] = (0.0, 0, 0),
    cu_seqlens_q: Optional[Array] = None,
    cu_seqlens_k: Optional[Array] = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    seqused_q: Optional[Array] = None,
    seqused_k: Optional[Array] = None,
    block_table: Optional[Array] = None,
    deterministic: bool = False,
    return_lse: bool = False,
) -> Union[Array, Tuple[Array, Array]]:
    """softmax(score) v, score = cap(softmax_scale q k^T) + alibi + bias, masked; exact, in tiles.

    For torch tensors and inside jax.grad it is differentiable with respect to q, k, v, bias and
    sinks (and through lse), and one operator in a compiled graph. For others, see
    attention_backward.

    softmax_scale: default 1 / sqrt(head_dim).
    causal, window_size: query i sees keys [i + shift - left, i + shift + right], both ends
        included, -1 or None unbounded; causal is right = 0. shift = seqlen_k - seqlen_q with
        align="bottom_right" (as in flash_attn), 0 with "top_left" (as in PyTorch's
        scaled_dot_product_attention).
    softcap: > 0: scores become softcap * tanh(score / softcap), before bias and masks.
    alibi_slopes: float32 [num_heads_q] or [batch, num_heads_q]; adds -slope * |i + shift - j|.
    bias: float32 or q's dtype, broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k], rank 4.
    mask: boolean, broadcastable like bias; True: may be seen.
    sinks: [num_heads_q], one more logit per head in the denominator only.
    dropout: (p, seed, offset); the same numbers drop the same elements, everywhere.
    cu_seqlens_q, cu_seqlens_k: int32 [batch + 1]; with max_seqlen_q and max_seqlen_k, upper bounds
        of the lengths. seqused_q, seqused_k: int32 [batch], rows that are real.
    block_table: int32 [batch, max_pages]; k and v are then pages [num_pages, page_size,
        num_heads_kv, head_dim].
    Returns out, or (out, lse) with return_lse. A query that sees no key has out 0 and lse -inf.
    """
    ragged = cu_seqlens_q is not None
    if (bias is None and mask is None and sinks is None and alibi_slopes is None and not ragged and
            dropout[0] == 0.0 and align == "bottom_right" and arrays.is_torch(q)):
        results = _torch_ops().quick_attend(q, k, v, softmax_scale, causal, *_window(window_size),
                                            softcap, deterministic, return_lse)
        if results is not None:
            return results if return_lse else results[0]
    _require_rank(q, v, 3 if ragged else 4)
    options = _options(causal, window_size, align, dropout, softmax_scale=softmax_scale,
                       softcap=softcap, alibi_slopes=alibi_slopes, bias=bias, mask=mask,
                       sinks=sinks, deterministic=deterministic)
    if ragged:
        options.update(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
                       max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, seqused_q=seqused_q,
                       seqused_k=seqused_k, block_table=block_table)
    if arrays.is_torch(q):
        out, lse = _torch_ops().attend(q, k, v, options)
    elif arrays.is_traced_by_jax(q, k, v, bias, sinks):
        from .jax import attend

        out, lse = attend(q, k, v, options)
    else:
        arrays.wait_for(q, k, v, bias, mask, sinks, alibi_slopes, cu_seqlens_q, cu_seqlens_k,
                        seqused_q, seqused_k, block_table)
        out_shape, lse_shape = _result_shapes(q, v, ragged)
        out = arrays.empty(out_shape, q)
        lse = arrays.empty(lse_shape, q, arrays.statistics_dtype(q))
        _native.attend(q, k, v, out, lse, workspace=arrays.pool_of(q), **options)
        out, lse = arrays.give_back(out, q), arrays.give_back(lse, q)
    return (out, lse) if return_lse else out


def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    *,
    dlse: Optional[Array] = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[Optional[int], Optional[int]] = (-1, -1),
    align: str = "bottom_right",
    softcap: float = 0.0,
    alibi_slopes: Optional[Array] = None,
    bias: Optional[Array] = None,
    mask: Optional[Array] = None,
    sinks: Optional[Array] = None,
    dropout: Tuple[float, int, int] = (0.0, 0, 0),
    cu_seqlens_q: Optional[Array] = None,
    cu_seqlens_k: Optional[Array] = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    seqused_q: Optional[Array] = None,
    seqused_k: Optional[Array] = None,
    deterministic: bool = False,
) -> Gradients:
    """Gradients of attention, given that of out (and of lse: dlse). Options equal the forward's.

    out and lse are what attention(..., return_lse=True) returned; dout has out's shape.
    """
    options = _options(causal, window_size, align, dropout, softmax_scale=softmax_scale,
                       softcap=softcap, alibi_slopes=alibi_slopes, bias=bias, mask=mask,
                       sinks=sinks, deterministic=deterministic)
    if cu_seqlens_q is not None:
        options.update(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
                       max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, seqused_q=seqused_q,
                       seqused_k=seqused_k)
    arrays.wait_for(dout, q, k, v, out, lse, dlse, bias, mask, sinks, alibi_slopes, cu_seqlens_q,
                    cu_seqlens_k, seqused_q, seqused_k)
    statistics = arrays.statistics_dtype(q)
    dq, dk, dv = (arrays.empty(x.shape, x) for x in (q, k, v))
    dbias = None if bias is None else arrays.empty(bias.shape, bias, statistics)
    dsinks = None if sinks is None else arrays.empty(sinks.shape, sinks, statistics)
    _native.attend(q, k, v, out, lse, dout=dout, dlse=dlse, dq=dq, dk=dk, dv=dv, dbias=dbias,
                   dsinks=dsinks, workspace=arrays.pool_of(q), **options)
    return Gradients(*(None if x is None else arrays.give_back(x, q)
                       for x in (dq, dk, dv, dbias, dsinks)))


def attention_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    k: Optional[Array] = None,
    v: Optional[Array] = None,
    *,
    cache_seqlens: Optional[Array] = None,
    cache_batch_idx: Optional[Array] = None,
    cache_leftpad: Optional[Array] = None,
    block_table: Optional[Array] = None,
    rotary_cos: Optional[Array] = None,
    rotary_sin: Optional[Array] = None,
    rotary_interleaved: bool = False,
    positions: Optional[Array] = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[Optional[int], Optional[int]] = (-1, -1),
    align: str = "bottom_right",
    softcap: float = 0.0,
    alibi_slopes: Optional[Array] = None,
    bias: Optional[Array] = None,
    mask: Optional[Array] = None,
    sinks: Optional[Array] = None,
    num_splits: int = 0,
    return_lse: bool = False,
) -> Union[Array, Tuple[Array, Array]]:
    """Attention of q [batch, seqlen_q, num_heads_q, head_dim] to a cache. Has no gradient.

    k_cache, v_cache: [batch_cache, capacity, num_heads_kv, head_dim], or with block_table (int32
        [batch, max_pages]) pages [num_pages, page_size, num_heads_kv, head_dim].
    k, v: [batch, seqlen_new, num_heads_kv, head_dim], written into the cache from slot
        cache_seqlens[b] on, before attention. cache_seqlens is not changed.
    cache_seqlens, cache_batch_idx, cache_leftpad: int32 [batch]: filled slots, row of the cache,
        first slot that holds a real key.
    rotary_cos, rotary_sin: float32 or q's dtype [num_positions, rotary_dim / 2], applied to q and
        to k. positions: int32 [batch, max(seqlen_q, seqlen_new)], rows of the tables; default: the
        slots.
    The other options are those of attention. Returns out, or (out, lse) with return_lse.
    """
    _require_rank(q, v_cache, 4)
    if k is not None:
        arrays.refuse_immutable(k_cache=k_cache, v_cache=v_cache)
    left, right = _window(window_size)
    options = CacheOptions(
        k, v, rotary_cos, rotary_sin, rotary_interleaved, positions, cache_seqlens,
        cache_batch_idx, cache_leftpad, block_table, num_splits, softmax_scale, bool(causal), left,
        right, _is_top_left(align), softcap, alibi_slopes, bias, mask, sinks)
    if arrays.is_torch(q):
        out, lse = _torch_ops().attend_to_cache(q, k_cache, v_cache, options, return_lse)
        return (out, lse) if return_lse else out
    arrays.wait_for(q, k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, block_table,
                    positions, bias, mask, sinks, alibi_slopes)
    out_shape, lse_shape = _result_shapes(q, v_cache, False)
    out = arrays.empty(out_shape, q)
    lse = arrays.empty(lse_shape, q, arrays.statistics_dtype(q)) if return_lse else None
    _native.attend_to_cache(q, k_cache, v_cache, out, lse, *options, arrays.pool_of(q))
    out = arrays.give_back(out, q)
    return (out, arrays.give_back(lse, q)) if return_lse else out
