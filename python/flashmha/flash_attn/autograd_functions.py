"""The classes of flash_attn.flash_attn_interface whose apply programs call directly.

Their arguments come in the order of flash_attn 2.8.3. They are not torch.autograd.Functions of
their own: gradients are those of the public functions, which they call.
"""

from __future__ import annotations

import torch

from . import flash_attn_interface as interface


def _apply(function, arguments, is_grad_enabled):
    with torch.set_grad_enabled(torch.is_grad_enabled() and is_grad_enabled):
        return function(*arguments)


class FlashAttnFunc:
    """flash_attn_func."""

    @staticmethod
    def apply(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
              deterministic, return_softmax, is_grad_enabled):
        return _apply(interface.flash_attn_func,
                      (q, k, v, dropout_p, softmax_scale, causal, window_size, softcap,
                       alibi_slopes, deterministic, return_softmax), is_grad_enabled)


class FlashAttnKVPackedFunc:
    """flash_attn_kvpacked_func."""

    @staticmethod
    def apply(q, kv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
              deterministic, return_softmax, is_grad_enabled):
        return _apply(interface.flash_attn_kvpacked_func,
                      (q, kv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                       deterministic, return_softmax), is_grad_enabled)


class FlashAttnQKVPackedFunc:
    """flash_attn_qkvpacked_func."""

    @staticmethod
    def apply(qkv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
              deterministic, return_softmax, is_grad_enabled):
        return _apply(interface.flash_attn_qkvpacked_func,
                      (qkv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                       deterministic, return_softmax), is_grad_enabled)


class FlashAttnVarlenFunc:
    """flash_attn_varlen_func."""

    @staticmethod
    def apply(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
              softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
              return_softmax, block_table, is_grad_enabled):
        return _apply(interface.flash_attn_varlen_func,
                      (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                       softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
                       return_softmax, block_table), is_grad_enabled)


class FlashAttnVarlenKVPackedFunc:
    """flash_attn_varlen_kvpacked_func."""

    @staticmethod
    def apply(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
              softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
              return_softmax, is_grad_enabled):
        return _apply(interface.flash_attn_varlen_kvpacked_func,
                      (q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                       softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
                       return_softmax), is_grad_enabled)


class FlashAttnVarlenQKVPackedFunc:
    """flash_attn_varlen_qkvpacked_func."""

    @staticmethod
    def apply(qkv, cu_seqlens, max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap,
              alibi_slopes, deterministic, return_softmax, is_grad_enabled):
        return _apply(interface.flash_attn_varlen_qkvpacked_func,
                      (qkv, cu_seqlens, max_seqlen, dropout_p, softmax_scale, causal, window_size,
                       softcap, alibi_slopes, deterministic, return_softmax), is_grad_enabled)
