"""The functions of flash_attn.flash_attn_interface, argument for argument.

Where they differ: CPU tensors, float32 on a CPU, any head_dim up to 256, softcap with dropout,
pages of any size, and pages with left padding are served instead of refused. lse is the exact
log-sum-exp also with ALiBi, and has a gradient.
"""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from .. import torch_ops
from ..attention import CacheOptions
from ..errors import InvalidArgument, Unsupported
from ..torch_ops import quick_attend
from .private import (
    _flash_attn_backward,
    _flash_attn_forward,
    _flash_attn_varlen_backward,
    _flash_attn_varlen_forward,
    _get_block_size_n,
    fa2_lse,
    masked_probabilities,
    maybe_contiguous,
    options_of,
    round_multiple,
)
from .rules import familiar_error, require, require_batch

_wrapped_flash_attn_forward = _flash_attn_forward
_wrapped_flash_attn_varlen_forward = _flash_attn_varlen_forward
_wrapped_flash_attn_backward = _flash_attn_backward
_wrapped_flash_attn_varlen_backward = _flash_attn_varlen_backward

__all__ = [
    "FlashAttnFunc",
    "FlashAttnKVPackedFunc",
    "FlashAttnQKVPackedFunc",
    "FlashAttnVarlenFunc",
    "FlashAttnVarlenKVPackedFunc",
    "FlashAttnVarlenQKVPackedFunc",
    "_flash_attn_backward",
    "_flash_attn_forward",
    "_flash_attn_varlen_backward",
    "_flash_attn_varlen_forward",
    "_get_block_size_n",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "maybe_contiguous",
    "round_multiple",
]


def _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
          deterministic, return_attn_probs, ragged=None):
    q, k, v = maybe_contiguous(q), maybe_contiguous(k), maybe_contiguous(v)
    options = options_of(dropout_p, softmax_scale, causal, window_size[0], window_size[1], softcap,
                         alibi_slopes, ragged)
    options["deterministic"] = deterministic
    require_batch(q, options)
    if dropout_p > 0:
        options["rng_state"] = torch_ops.new_rng_state(q)
    try:
        out, lse = torch_ops.attend(q, k, v, dict(options) if return_attn_probs else options)
    except (InvalidArgument, Unsupported) as error:
        raise familiar_error(error, q, k, v, alibi_slopes) from None
    if not return_attn_probs:
        return out
    probabilities = masked_probabilities(q, k, lse, options) if dropout_p > 0 else q.new_empty((0,))
    return out, fa2_lse(lse), probabilities


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """Attention, differentiable in q, k and v.

    q: [batch, seqlen_q, nheads, headdim]; k, v: [batch, seqlen_k, nheads_k, headdim]; nheads is a
    multiple of nheads_k. causal and window_size (left, right; inclusive, -1 unbounded) are aligned
    to the bottom right corner. softcap > 0 caps the scores. alibi_slopes: float32
    [nheads] or [batch, nheads]. softmax_scale: default 1 / sqrt(headdim).
    Returns out [batch, seqlen_q, nheads, headdim]; with return_attn_probs also lse float32
    [batch, nheads, seqlen_q], +inf for rows that see no key, and, with dropout, the probabilities
    [batch, nheads, seqlen_q rounded to 128, seqlen_k rounded to 128], not normalised, negative
    where dropped (for tests only; otherwise an empty tensor).
    """
    if dropout_p == 0.0 and alibi_slopes is None and not return_attn_probs:
        left, right = window_size
        try:
            results = quick_attend(q, k, v, softmax_scale, causal, left, right, softcap,
                                   deterministic, False)
            if results is not None:
                return results[0]
        except (InvalidArgument, Unsupported):  # said below, or served there
            pass
    return _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                 deterministic, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """flash_attn_func with kv [batch, seqlen_k, 2, nheads_k, headdim]."""
    k, v = kv.unbind(2)
    return _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                 deterministic, return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """flash_attn_func with qkv [batch, seqlen, 3, nheads, headdim]."""
    q, k, v = qkv.unbind(2)
    return _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                 deterministic, return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Optional[Tensor] = None,
) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """Ragged batch: q [total_q, nheads, headdim], k and v [total_k, nheads_k, headdim].

    Sequence b owns rows [cu_seqlens_q[b], cu_seqlens_q[b + 1]) of q, likewise of k and v; int32
    [batch + 1]. max_seqlen_q, max_seqlen_k: upper bounds of the lengths. With block_table (int32
    [batch, max_pages]) k and v are pages [num_pages, page_size, nheads_k, headdim].
    Returns out [total_q, nheads, headdim]; with return_attn_probs also lse float32
    [nheads, total_q] and the probabilities of flash_attn_func, one matrix a sequence.
    """
    ragged = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None, block_table)
    return _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                 deterministic, return_attn_probs, ragged)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """flash_attn_varlen_func with kv [total_k, 2, nheads_k, headdim]."""
    k, v = kv.unbind(1)
    ragged = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None, None)
    return _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                 deterministic, return_attn_probs, ragged)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor, Tensor]]:
    """flash_attn_varlen_func with qkv [total, 3, nheads, headdim]; cu_seqlens int32 [batch + 1]."""
    q, k, v = qkv.unbind(1)
    ragged = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, None, None)
    return _call(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                 deterministic, return_attn_probs, ragged)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Optional[Tensor] = None,
    v: Optional[Tensor] = None,
    rotary_cos: Optional[Tensor] = None,
    rotary_sin: Optional[Tensor] = None,
    cache_seqlens: Optional[Union[int, Tensor]] = None,
    cache_batch_idx: Optional[Tensor] = None,
    cache_leftpad: Optional[Tensor] = None,
    block_table: Optional[Tensor] = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Optional[Tensor] = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    """Attention of q [batch, seqlen_q, nheads, headdim] to a cache; has no gradient.

    k_cache, v_cache: [batch_cache, seqlen_cache, nheads_k, headdim], last dimension contiguous; or
    pages [num_pages, page_size, nheads_k, headdim] with block_table int32 [batch, max_pages].
    k, v: [batch, seqlen_new, nheads_k, headdim], written into the cache in place from slot
    cache_seqlens[b] on. cache_seqlens: int or int32 [batch], slots filled before this call.
    cache_batch_idx, cache_leftpad: int32 [batch]. rotary_cos, rotary_sin: [seqlen_rotary,
    rotary_dim / 2], applied to k and q by slot; without causal and window, every query takes the
    position cache_seqlens[b].
    Returns out, or (out, lse float32 [batch, nheads, seqlen_q]) with return_softmax_lse.
    """
    assert k_cache.stride(-1) == 1, "k_cache must have contiguous last dimension"
    assert v_cache.stride(-1) == 1, "v_cache must have contiguous last dimension"
    require(k is None or cache_seqlens is not None,
            "If key is supplied, seqlens_k must also be passed in")
    require(k is None or v is not None, "If key is supplied, value must also be passed in")
    require(block_table is None or cache_batch_idx is None,
            "Paged KVcache does not support cache_batch_idx")
    require(num_splits <= 128, "num_splits > 128 not supported")
    require(q.shape[0] > 0, "batch size must be positive")
    if rotary_cos is not None:
        require(k is not None, "If rotary cos/sin are provided, new key / value to be appended to "
                "KV cache must also be provided")
        capacity = (k_cache.shape[1] if block_table is None else
                    block_table.shape[1] * k_cache.shape[1])
        require(rotary_cos.shape[0] >= capacity,
                "cos/sin seqlen must be at least the seqlen of KV cache")
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)
    options = CacheOptions(
        maybe_contiguous(k), maybe_contiguous(v), rotary_cos, rotary_sin, rotary_interleaved,
        cache_seqlens=maybe_contiguous(cache_seqlens),
        cache_batch_idx=maybe_contiguous(cache_batch_idx),
        cache_leftpad=maybe_contiguous(cache_leftpad), block_table=maybe_contiguous(block_table),
        num_splits=num_splits, softmax_scale=softmax_scale, causal=causal,
        window_left=max(window_size[0], -1), window_right=max(window_size[1], -1),
        softcap=max(softcap, 0.0), alibi_slopes=alibi_slopes)
    try:
        out, lse = torch_ops.attend_to_cache(maybe_contiguous(q), k_cache, v_cache, options,
                                             return_softmax_lse)
    except (InvalidArgument, Unsupported) as error:
        raise familiar_error(error, q, k_cache, v_cache, alibi_slopes) from None
    return (out, fa2_lse(lse)) if return_softmax_lse else out


# They call the functions above.
from .autograd_functions import (
    FlashAttnFunc,
    FlashAttnKVPackedFunc,
    FlashAttnQKVPackedFunc,
    FlashAttnVarlenFunc,
    FlashAttnVarlenKVPackedFunc,
    FlashAttnVarlenQKVPackedFunc,
)
