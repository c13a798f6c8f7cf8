"""The rotary embedding as a function without gradient (Su et al. 2021, "RoFormer")."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from .... import _native, torch_ops
from ...rules import require

__all__ = ["apply_rotary"]


def positions_of(x: Tensor, seqlen_offsets: Union[int, Tensor],
                 cu_seqlens: Optional[Tensor]) -> Tensor:
    """int32 [batch, seqlen] (or [total] with cu_seqlens): the position of every token of x."""
    if cu_seqlens is None:
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.int32)[None]
        if isinstance(seqlen_offsets, Tensor):
            positions = positions + seqlen_offsets.to(torch.int32)[:, None]
        else:
            positions = positions + seqlen_offsets
        return positions.expand(x.shape[0], -1).contiguous()
    rows = torch.arange(x.shape[0], device=x.device, dtype=torch.int32)
    sequence = (torch.searchsorted(cu_seqlens, rows, right=True) - 1).clamp(
        max=cu_seqlens.shape[0] - 2)
    positions = rows - cu_seqlens[sequence]
    if isinstance(seqlen_offsets, Tensor):
        return (positions + seqlen_offsets[sequence]).to(torch.int32)
    return (positions + seqlen_offsets).to(torch.int32)


def check(x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Optional[Tensor]) -> None:
    """The rules of flash_attn that are not those of the kernel."""
    require(sin.shape == cos.shape and cos.dim() == 2,
            f"cos and sin must be (seqlen_ro, rotary_dim / 2) both; got {tuple(cos.shape)} and "
            f"{tuple(sin.shape)}")
    require(x.dim() == (4 if cu_seqlens is None else 3),
            "x must be (batch, seqlen, nheads, headdim), or (total_seqlen, nheads, headdim) with "
            f"cu_seqlens; got {tuple(x.shape)}")
    require(2 * cos.shape[1] <= x.shape[-1], "rotary_dim must be <= headdim; got rotary_dim "
            f"{2 * cos.shape[1]}, headdim {x.shape[-1]}")


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: Union[int, Tensor] = 0,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """Rotates the first rotary_dim elements of every head of x.

    x: (batch, seqlen, nheads, headdim), or (total_seqlen, nheads, headdim) with cu_seqlens int32
    (batch + 1). cos, sin: (seqlen_ro, rotary_dim / 2). Token i of sequence b has the position
    i + seqlen_offsets[b] (an int, or (batch,)). interleaved: pairs (2i, 2i + 1) instead of
    (i, i + rotary_dim / 2). conjugate: rotates backwards. max_seqlen is not needed.
    """
    check(x, cos, sin, cu_seqlens)
    positions = positions_of(x, seqlen_offsets, cu_seqlens)
    cos, sin = cos.detach().float().contiguous(), sin.detach().float().contiguous()
    with torch.no_grad():
        if not inplace:
            return torch.ops.flashmha.rotary(x, cos, sin, positions, interleaved, conjugate)
        if torch_ops.is_plain_call(x) and x.stride(-1) == 1:
            _native.rotary(x, cos, sin, positions, x, interleaved=interleaved, conjugate=conjugate)
            return x
        return x.copy_(torch.ops.flashmha.rotary(x, cos, sin, positions, interleaved, conjugate))
