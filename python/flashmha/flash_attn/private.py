"""Private names of flash_attn.flash_attn_interface that other packages import (ring attention)."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from .. import _native, torch_ops
from ..errors import Unsupported
from ..torch_operators import are_deterministic, pool_of
from . import dropout
from .rules import familiar_errors, require, require_batch


def maybe_contiguous(x: Optional[Tensor]) -> Optional[Tensor]:
    """x, or a copy of it whose last dimension has stride 1."""
    return x.contiguous() if x is not None and x.stride(-1) != 1 else x


def round_multiple(x: int, m: int) -> int:
    """The next multiple of m."""
    return (x + m - 1) // m * m


def _get_block_size_n(device: Any, head_dim: int, is_dropout: bool, is_causal: bool) -> int:
    """Columns of the probabilities of return_attn_probs that share a maximum: all of them."""
    assert head_dim <= 256
    return 2**30


def options_of(dropout_p, softmax_scale, causal, window_left, window_right, softcap, alibi_slopes,
               ragged=None) -> Dict[str, Any]:
    """Keywords of torch_ops.attend. Negative windows are unbounded, a negative softcap is none."""
    options = dict(causal=causal, window_left=max(window_left, -1),
                   window_right=max(window_right, -1), softmax_scale=softmax_scale,
                   softcap=max(softcap, 0.0), dropout_p=dropout_p, alibi_slopes=alibi_slopes)
    if ragged is not None:
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_k, block_table = ragged
        for name, value in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k),
                            ("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k),
                            ("seqused_k", seqused_k), ("block_table", block_table)):
            options[name] = value
    return options


def fa2_lse(lse: Tensor) -> Tensor:
    """lse as flash_attn gives it: +inf for rows that see no key."""
    return lse.masked_fill(lse == -math.inf, math.inf)


def _probabilities(q, k, options, seed, offset, kept) -> Tensor:
    """exp(score - largest score of the row) of [batch, seqlen, heads, dim], negative if dropped."""
    scale = options["softmax_scale"]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()) * scale
    if options["softcap"] > 0:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    seqlen_q, seqlen_k = scores.shape[-2:]
    i = torch.arange(seqlen_q, device=q.device)[:, None] + seqlen_k - seqlen_q
    j = torch.arange(seqlen_k, device=q.device)[None, :]
    if options["alibi_slopes"] is not None:
        slopes = options["alibi_slopes"].expand(q.shape[0], -1)
        scores = scores - slopes[:, :, None, None] * (i - j).abs()
    left, right = options["window_left"], 0 if options["causal"] else options["window_right"]
    if left >= 0:
        scores = scores.masked_fill(j < i - left, -math.inf)
    if right >= 0:
        scores = scores.masked_fill(j > i + right, -math.inf)
    most = scores.amax(-1, keepdim=True) if seqlen_k > 0 else scores.new_zeros(())
    p = torch.exp(scores - most.masked_fill(most == -math.inf, 0.0)).to(q.dtype)
    return torch.where(kept, p, -p)


def masked_probabilities(q: Tensor, k: Tensor, lse: Tensor, options: Dict[str, Any]) -> Tensor:
    """S_dmask of flash_attn: [batch, heads, seqlen_q, seqlen_k], both rounded up to 128."""
    seed, offset = options["rng_state"].tolist()
    heads, device, p = q.shape[-2], q.device, options["dropout_p"]
    with torch.no_grad():
        q, k = q.detach(), k.detach()
        if q.dim() == 4:
            batch, seqlen_q, seqlen_k = q.shape[0], q.shape[1], k.shape[1]
            parts = [(slice(0, batch), q, k)]
        else:
            require(options["block_table"] is None, "return_attn_probs does not support pages")
            ends_q, ends_k = options["cu_seqlens_q"].tolist(), options["cu_seqlens_k"].tolist()
            batch = len(ends_q) - 1
            seqlen_q, seqlen_k = options["max_seqlen_q"], options["max_seqlen_k"]
            parts = [(slice(b, b + 1), q[None, ends_q[b]:ends_q[b + 1]],
                      k[None, ends_k[b]:ends_k[b + 1]]) for b in range(batch)]
        kept = dropout.kept(p, seed, offset, batch, heads, seqlen_q, seqlen_k, device)
        result = q.new_zeros((batch, heads, round_multiple(seqlen_q, 128),
                              round_multiple(seqlen_k, 128)))
        for rows, q_part, k_part in parts:
            part_options = dict(options)
            slopes = options["alibi_slopes"]
            if slopes is not None and slopes.dim() == 2:
                part_options["alibi_slopes"] = slopes[rows]
            n, m = q_part.shape[1], k_part.shape[1]
            result[rows, :, :n, :m] = _probabilities(q_part, k_part, part_options, seed, offset,
                                                     kept[rows, :, :n, :m])
    return result


def _forward(q, k, v, options, return_softmax):
    q, k, v = maybe_contiguous(q), maybe_contiguous(k), maybe_contiguous(v)
    dropout_p = options["dropout_p"]
    require(not return_softmax or dropout_p > 0,
            "return_softmax is only supported when p_dropout > 0.0")
    require_batch(q, options)
    rng_state = (torch_ops.new_rng_state(q) if dropout_p > 0
                 else torch.zeros(2, dtype=torch.int64))
    if dropout_p > 0:
        options["rng_state"] = rng_state
    with torch.no_grad(), familiar_errors(q, k, v, options["alibi_slopes"]):
        out, lse = torch_ops.attend(q, k, v, dict(options))
    probabilities = (masked_probabilities(q, k, lse, options) if return_softmax
                     else q.new_empty((0,)))
    return out, fa2_lse(lse), probabilities, rng_state


def _flash_attn_forward(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, softmax_scale: float, causal: bool,
    window_size_left: int, window_size_right: int, softcap: float,
    alibi_slopes: Optional[Tensor], return_softmax: bool,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, softmax_lse (+inf in empty rows), S_dmask, rng_state (int64 [2], on the CPU)."""
    options = options_of(dropout_p, softmax_scale, causal, window_size_left, window_size_right,
                         softcap, alibi_slopes)
    return _forward(q, k, v, options, return_softmax)


def _flash_attn_varlen_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, dropout_p: float, softmax_scale: float, causal: bool,
    window_size_left: int = -1, window_size_right: int = -1, softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None, return_softmax: bool = False,
    block_table: Optional[Tensor] = None, leftpad_k: Optional[Tensor] = None,
    seqused_k: Optional[Tensor] = None, zero_tensors: bool = False,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for ragged batches. Rows of no sequence are 0 with and without zero_tensors."""
    if leftpad_k is not None:
        raise Unsupported("[_flash_attn_varlen_forward] leftpad_k is not served: use "
                          "flash_attn_with_kvcache, whose cache_leftpad is")
    options = options_of(dropout_p, softmax_scale, causal, window_size_left, window_size_right,
                         softcap, alibi_slopes, (cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                                 max_seqlen_k, seqused_k, block_table))
    return _forward(q, k, v, options, return_softmax)


def written(gradient: Optional[Tensor], like: Tensor) -> Tensor:
    """Memory for a gradient: what is given, or new."""
    return torch.empty_like(like) if gradient is None else gradient


def _backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, options, deterministic, rng_state):
    dout, q, k, v, out = (maybe_contiguous(x) for x in (dout, q, k, v, out))
    gradients = [written(*pair) for pair in ((dq, q), (dk, k), (dv, v))]
    dropout_p = options["dropout_p"]
    if dropout_p > 0 and rng_state is None:  # as the forward: the next one of the generator
        rng_state = torch_ops.new_rng_state(q)
    require_batch(q, options)
    deterministic = deterministic or are_deterministic()
    with torch.no_grad(), familiar_errors(q, k, v, options["alibi_slopes"]):
        if torch_ops.is_plain_call(q) and all(x.stride(-1) == 1 for x in gradients):
            seed, offset = rng_state.tolist() if dropout_p > 0 else (0, 0)
            _native.attend(q, k, v, out, softmax_lse, dout=dout, dq=gradients[0],
                           dk=gradients[1], dv=gradients[2], seed=seed % 2**64,
                           offset=offset % 2**64, deterministic=deterministic,
                           workspace=pool_of(q), **options)
        else:
            results = torch_ops.attend_backward(dout, q, k, v, out, softmax_lse, dict(
                options, deterministic=deterministic,
                rng_state=rng_state if dropout_p > 0 else None))
            for gradient, result in zip(gradients, results):
                gradient.copy_(result)
        return (dout.float() * out.float()).sum(-1)


def _flash_attn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
    dq: Optional[Tensor], dk: Optional[Tensor], dv: Optional[Tensor], dropout_p: float,
    softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int,
    softcap: float, alibi_slopes: Optional[Tensor], deterministic: bool,
    rng_state: Optional[Tensor] = None,
) -> Tensor:
    """Writes dq, dk, dv; returns softmax_d float32 [batch, nheads, seqlen_q rounded to 128]."""
    options = options_of(dropout_p, softmax_scale, causal, window_size_left, window_size_right,
                         softcap, alibi_slopes)
    softmax_d = _backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, options, deterministic,
                          rng_state).transpose(1, 2)
    seqlen_q = softmax_d.shape[-1]
    return torch.nn.functional.pad(softmax_d, (0, round_multiple(seqlen_q, 128) - seqlen_q))


def _flash_attn_varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor,
    dq: Optional[Tensor], dk: Optional[Tensor], dv: Optional[Tensor], cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, dropout_p: float,
    softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int,
    softcap: float, alibi_slopes: Optional[Tensor], deterministic: bool,
    rng_state: Optional[Tensor] = None, zero_tensors: bool = False,
) -> Tensor:
    """Writes dq, dk, dv; returns softmax_d float32 [nheads, total_q + 128 * batch]."""
    options = options_of(dropout_p, softmax_scale, causal, window_size_left, window_size_right,
                         softcap, alibi_slopes, (cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                                 max_seqlen_k, None, None))
    delta = _backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, options, deterministic,
                      rng_state).t()
    # As flash_attn lays it out: every sequence starts 128 columns later than it would.
    lengths = cu_seqlens_q[1:] - cu_seqlens_q[:-1]
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=q.device), lengths)
    softmax_d = delta.new_zeros((delta.shape[0], delta.shape[1] + 128 * len(lengths)))
    columns = torch.arange(len(sequence), device=q.device) + 128 * sequence
    softmax_d[:, columns] = delta[:, :len(sequence)]
    return softmax_d
