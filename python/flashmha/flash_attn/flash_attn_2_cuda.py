"""The functions of flash_attn's extension module, which some programs call past its Python code.

They take tensors on a CPU as well. Tensors need a contiguous last dimension; nothing is padded. A
generator (gen_) is not taken: PyTorch's own for the device of q is used.
"""

from __future__ import annotations

from typing import List, Optional

from torch import Tensor

from ..errors import Unsupported
from . import flash_attn_interface, private
from .rules import require

__all__ = ["bwd", "fwd", "fwd_kvcache", "varlen_bwd", "varlen_fwd"]


def _check(gen_, *tensors):
    if gen_ is not None:
        raise Unsupported("[flash_attn_2_cuda] gen_ must be None: the generator of q's device is "
                          "used")
    for x in tensors:
        require(x.stride(-1) == 1, "Input tensor must have contiguous last dimension")


def _into(out_: Optional[Tensor], out: Tensor) -> Tensor:
    return out if out_ is None else out_.copy_(out)


def fwd(q, k, v, out_, alibi_slopes_, p_dropout, softmax_scale, is_causal, window_size_left,
        window_size_right, softcap, return_softmax, gen_) -> List[Tensor]:
    """[out, softmax_lse, S_dmask, rng_state] of q, k, v [batch, seqlen, heads, dim]."""
    _check(gen_, q, k, v)
    out, *rest = private._flash_attn_forward(
        q, k, v, p_dropout, softmax_scale, is_causal, window_size_left, window_size_right, softcap,
        alibi_slopes_, return_softmax)
    return [_into(out_, out), *rest]


def varlen_fwd(q, k, v, out_, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k_, block_table_,
               alibi_slopes_, max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale, zero_tensors,
               is_causal, window_size_left, window_size_right, softcap, return_softmax,
               gen_) -> List[Tensor]:
    """The same of ragged batches [total, heads, dim]."""
    _check(gen_, q, k, v)
    out, *rest = private._flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale,
        is_causal, window_size_left, window_size_right, softcap, alibi_slopes_, return_softmax,
        block_table_, leftpad_k_, seqused_k, zero_tensors)
    return [_into(out_, out), *rest]


def bwd(dout, q, k, v, out, softmax_lse, dq_, dk_, dv_, alibi_slopes_, p_dropout, softmax_scale,
        is_causal, window_size_left, window_size_right, softcap, deterministic, gen_,
        rng_state) -> List[Tensor]:
    """[dq, dk, dv, softmax_d]."""
    _check(gen_, dout, q, k, v, out)
    gradients = [private.written(*pair) for pair in ((dq_, q), (dk_, k), (dv_, v))]
    softmax_d = private._flash_attn_backward(
        dout, q, k, v, out, softmax_lse, *gradients, p_dropout, softmax_scale, is_causal,
        window_size_left, window_size_right, softcap, alibi_slopes_, deterministic, rng_state)
    return [*gradients, softmax_d]


def varlen_bwd(dout, q, k, v, out, softmax_lse, dq_, dk_, dv_, cu_seqlens_q, cu_seqlens_k,
               alibi_slopes_, max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale, zero_tensors,
               is_causal, window_size_left, window_size_right, softcap, deterministic, gen_,
               rng_state) -> List[Tensor]:
    """The same of ragged batches."""
    _check(gen_, dout, q, k, v, out)
    gradients = [private.written(*pair) for pair in ((dq_, q), (dk_, k), (dv_, v))]
    softmax_d = private._flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, *gradients, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, p_dropout, softmax_scale, is_causal, window_size_left, window_size_right,
        softcap, alibi_slopes_, deterministic, rng_state, zero_tensors)
    return [*gradients, softmax_d]


def fwd_kvcache(q, kcache, vcache, k_, v_, seqlens_k_, rotary_cos_, rotary_sin_, cache_batch_idx_,
                leftpad_k_, block_table_, alibi_slopes_, out_, softmax_scale, is_causal,
                window_size_left, window_size_right, softcap, is_rotary_interleaved,
                num_splits) -> List[Tensor]:
    """[out, softmax_lse]; the cache is written in place."""
    _check(None, q, kcache, vcache)
    out, lse = flash_attn_interface.flash_attn_with_kvcache(
        q, kcache, vcache, k_, v_, rotary_cos_, rotary_sin_, seqlens_k_, cache_batch_idx_,
        leftpad_k_, block_table_, softmax_scale, is_causal, (window_size_left, window_size_right),
        softcap, is_rotary_interleaved, alibi_slopes_, num_splits, return_softmax_lse=True)
    return [_into(out_, out), lse]
