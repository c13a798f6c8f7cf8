"""Between padded batches [batch, seqlen, ...] and their real tokens [total_nnz, ...]."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "IndexFirstAxis",
    "IndexFirstAxisResidual",
    "IndexPutFirstAxis",
    "index_first_axis",
    "index_first_axis_residual",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """input[indices]: [n, ...] and int64 [m] -> [m, ...]."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """[m, ...] and int64 [m] -> [first_axis_dim, ...]: row indices[i] is values[i], others 0."""
    return values.new_zeros((first_axis_dim, *values.shape[1:])).index_copy(0, indices, values)


def index_first_axis_residual(input: Tensor, indices: Tensor) -> Tuple[Tensor, Tensor]:
    """index_first_axis, and input for a residual connection."""
    return input.index_select(0, indices), input


class IndexFirstAxis:
    """index_first_axis, for programs that call its apply."""

    apply = staticmethod(index_first_axis)


class IndexPutFirstAxis:
    """index_put_first_axis, likewise."""

    apply = staticmethod(index_put_first_axis)


class IndexFirstAxisResidual:
    """index_first_axis_residual, likewise."""

    apply = staticmethod(index_first_axis_residual)


def _cu_seqlens(lengths: Tensor) -> Tensor:
    return F.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))


def unpad_input(hidden_states: Tensor, attention_mask: Tensor,
                unused_mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Gathers the tokens of hidden_states [batch, seqlen, ...] that a mask [batch, seqlen] marks.

    unused_mask marks tokens that keep their place although they are not used.
    Returns hidden_states [total_nnz, ...], indices int64 [total_nnz] into the flattened batch,
    cu_seqlens int32 [batch + 1], the length of the longest sequence, and seqused int32 [batch]: the
    tokens of each sequence without the unused ones.
    """
    seqused = attention_mask.sum(dim=-1, dtype=torch.int32)
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(kept.flatten(), as_tuple=False).flatten()
    longest = lengths.max().item()
    return (index_first_axis(hidden_states.flatten(0, 1), indices), indices, _cu_seqlens(lengths),
            longest, seqused)


def unpad_input_for_concatenated_sequences(
        hidden_states: Tensor, attention_mask_in_length: Tensor
) -> Tuple[Tensor, Tensor, Tensor, int]:
    """unpad_input where row b of attention_mask_in_length [batch, seqlen] holds the lengths of the
    sequences that row b of hidden_states [batch, seqlen, ...] consists of, then zeros.

    Returns hidden_states [total_nnz, ...], indices, cu_seqlens with an entry for each of these
    sequences, and the length of the longest.
    """
    filled = attention_mask_in_length.sum(dim=-1, keepdim=True)
    positions = torch.arange(attention_mask_in_length.shape[-1], device=filled.device)
    indices = torch.nonzero((positions < filled).flatten(), as_tuple=False).flatten()
    lengths = attention_mask_in_length.flatten()
    lengths = lengths[lengths != 0]
    return (index_first_axis(hidden_states.flatten(0, 1), indices), indices, _cu_seqlens(lengths),
            lengths.max().item())


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Inverse of unpad_input: [total_nnz, ...] -> [batch, seqlen, ...], padding is 0."""
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(
        0, (batch, seqlen))
