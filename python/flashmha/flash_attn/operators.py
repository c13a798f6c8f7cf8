"""torch.ops.flash_attn: the operators that flash_attn registers, by its private functions.

After install_as_flash_attn() the import of flash_attn defines them, and nothing else does: another
flash_attn in the process has its own.
"""

from __future__ import annotations

import functools

import torch

from . import private
from .private import round_multiple

_FORWARD = ("float dropout_p, float softmax_scale, bool causal, SymInt window_size_left{minus}, "
            "SymInt window_size_right{minus}, float softcap{zero}, Tensor? alibi_slopes{none}")
_LENGTHS = ("Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k")
_RESULTS = "(Tensor, Tensor, Tensor, Tensor)"
_GRADIENTS = ("Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, "
              "Tensor(a!)? dq, Tensor(b!)? dk, Tensor(c!)? dv")
_GIVEN = _FORWARD.format(minus="", zero="", none="")
_DEFAULT = _FORWARD.format(minus="=-1", zero="=0.0", none="=None")
_SCHEMAS = {
    "_flash_attn_forward": f"(Tensor q, Tensor k, Tensor v, {_GIVEN}, bool return_softmax) -> "
                           f"{_RESULTS}",
    "_flash_attn_varlen_forward":
        f"(Tensor q, Tensor k, Tensor v, {_LENGTHS}, {_DEFAULT}, bool return_softmax=False, "
        "Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
        f"bool zero_tensors=False) -> {_RESULTS}",
    "_flash_attn_backward": f"({_GRADIENTS}, {_GIVEN}, bool deterministic, "
                            "Tensor? rng_state=None) -> Tensor",
    "_flash_attn_varlen_backward":
        f"({_GRADIENTS}, {_LENGTHS}, {_GIVEN}, bool deterministic, Tensor? rng_state=None, "
        "bool zero_tensors=False) -> Tensor",
}


def _results(q, v, lse_shape, probabilities_shape):
    return (q.new_empty((*q.shape[:-1], v.shape[-1])),
            q.new_empty(lse_shape, dtype=torch.float32), q.new_empty(probabilities_shape),
            torch.empty((2,), dtype=torch.int64))


def _forward_fake(q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right,
                  softcap, alibi_slopes, return_softmax):
    batch, seqlen_q, heads, _ = q.shape
    shape = (0,)
    if return_softmax:
        shape = (batch, heads, round_multiple(seqlen_q, 128), round_multiple(k.shape[1], 128))
    return _results(q, v, (batch, heads, seqlen_q), shape)


def _varlen_forward_fake(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                         softmax_scale, causal, window_size_left=-1, window_size_right=-1,
                         softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None,
                         leftpad_k=None, seqused_k=None, zero_tensors=False):
    total, heads, _ = q.shape
    shape = (0,)
    if return_softmax:
        shape = (cu_seqlens_q.shape[0] - 1, heads, round_multiple(max_seqlen_q, 128),
                 round_multiple(max_seqlen_k, 128))
    return _results(q, v, (heads, total), shape)


def _backward_fake(dout, q, *rest, **others):
    batch, seqlen_q, heads, _ = q.shape
    return q.new_empty((batch, heads, round_multiple(seqlen_q, 128)), dtype=torch.float32)


def _varlen_backward_fake(dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, *rest,
                          **others):
    total, heads, _ = q.shape
    columns = total + 128 * (cu_seqlens_q.shape[0] - 1)
    return q.new_empty((heads, columns), dtype=torch.float32)


_FAKES = {
    "_flash_attn_forward": _forward_fake,
    "_flash_attn_varlen_forward": _varlen_forward_fake,
    "_flash_attn_backward": _backward_fake,
    "_flash_attn_varlen_backward": _varlen_backward_fake,
}


@functools.lru_cache(maxsize=None)
def register() -> torch.library.Library:
    """Defines the operators, once."""
    library = torch.library.Library("flash_attn", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        for key in ("CPU", "CUDA"):
            library.impl(name, getattr(private, name), key)
        torch.library.register_fake(f"flash_attn::{name}", _FAKES[name], lib=library)
    return library
