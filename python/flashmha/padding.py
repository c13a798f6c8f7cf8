"""Padded and packed batches of torch tensors: attention sees the real tokens alone."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

__all__ = [
    "Rows",
    "all_rows",
    "as_boolean",
    "is_full", "lengths",
    "queries_and_keys",
    "rows_of",
    "sequences_of",
]


class _Gather(torch.autograd.Function):
    """x[rows] for rows that differ: [batch, seqlen, ...] -> [total, ...]."""

    @staticmethod
    def forward(ctx, x, *rows):
        ctx.save_for_backward(*rows)
        ctx.shape = x.shape
        return x[rows]

    @staticmethod
    def backward(ctx, dy):
        dx = dy.new_zeros(ctx.shape)
        dx[ctx.saved_tensors] = dy
        return dx, None, None


class _Scatter(torch.autograd.Function):
    """The inverse: zeros [batch, seqlen, ...], y[rows] = x."""

    @staticmethod
    def forward(ctx, x, shape, *rows):
        ctx.save_for_backward(*rows)
        y = x.new_zeros((*shape, *x.shape[1:]))
        y[rows] = x
        return y

    @staticmethod
    def backward(ctx, dy):
        return dy[ctx.saved_tensors], None, None, None


class Rows(NamedTuple):
    """Real tokens of a batch [batch, seqlen]; without indices all of them are."""

    indices: Optional[Tuple[Tensor, Tensor]]
    cu_seqlens: Tensor  # int32 [num_sequences + 1]
    max_seqlen: int

    def gather(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1) if self.indices is None else _Gather.apply(x, *self.indices)

    def scatter(self, x: Tensor, batch: int, seqlen: int) -> Tensor:
        if self.indices is None:
            return x.unflatten(0, (batch, seqlen))
        return _Scatter.apply(x, (batch, seqlen), *self.indices)


def rows_of(mask: Tensor) -> Rows:
    """The real tokens of a boolean mask [batch, seqlen]."""
    lengths = mask.sum(-1, dtype=torch.int32)
    return Rows(mask.nonzero(as_tuple=True), _ends(lengths), int(lengths.max()))


def _ends(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def all_rows(batch: int, seqlen: int, device: torch.device) -> Rows:
    """All tokens of a batch [batch, seqlen]."""
    ends = torch.arange(batch + 1, dtype=torch.int32, device=device) * seqlen
    return Rows(None, ends, seqlen)


def sequences_of(numbers: Tensor) -> Rows:
    """Packed batch: a sequence is a run of equal numbers inside a row."""
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    first = starts.flatten().nonzero().flatten().to(torch.int32)
    ends = torch.nn.functional.pad(first, (0, 1), value=numbers.numel())
    return Rows(None, ends, int(ends.diff().max()))


def queries_and_keys(mask: Tensor, seqlen_q: int, from_mask: bool) -> Tuple[Rows, Rows]:
    """Rows of queries and keys under a mask [batch, seqlen_k].

    from_mask: queries are the mask's last columns (self-attention), but for a single one, which is
    always real; otherwise all are (cross-attention). Booleans mark real tokens; integers number
    the sequences of a packed batch.
    """
    return _kept(mask, ("rows", seqlen_q, from_mask),
                 lambda: _find_rows(mask, seqlen_q, from_mask))


def lengths(queries: Rows, keys: Rows) -> Dict[str, Any]:
    """What attention is told of them."""
    return {"cu_seqlens_q": queries.cu_seqlens, "cu_seqlens_k": keys.cu_seqlens,
            "max_seqlen_q": queries.max_seqlen, "max_seqlen_k": keys.max_seqlen}


def as_boolean(mask: Tensor) -> Tensor:
    """The mask as booleans, non-zero is true: one tensor, whose rows are found once."""
    if mask.dtype == torch.bool:
        return mask
    return mask.bool() if torch.compiler.is_compiling() else _kept(mask, "boolean", mask.bool)


def is_full(mask: Tensor) -> bool:
    """Whether all are real: then the mask only says how many keys there are."""
    return _kept(mask, "full", lambda: bool(mask.all()))


def _kept(mask: Tensor, key: Any, find: Callable[[], Any]) -> Any:
    """What was found out about a mask stays with it, because all layers of a model get the same."""
    if mask.is_inference():  # changes of these are not counted
        return find()
    version, known = getattr(mask, "_flashmha_known", (None, None))
    if version != mask._version:
        known = {}
        mask._flashmha_known = mask._version, known
    if key not in known:
        known[key] = find()
    return known[key]


def _find_rows(mask: Tensor, seqlen_q: int, from_mask: bool) -> Tuple[Rows, Rows]:
    batch, seqlen_k = mask.shape
    if mask.dtype != torch.bool:
        queries = keys = sequences_of(mask)
    else:
        keys = rows_of(mask)
        if not from_mask or seqlen_q == 1:
            queries = all_rows(batch, seqlen_q, mask.device)
        else:
            queries = keys if seqlen_q == seqlen_k else rows_of(mask[:, -seqlen_q:])
    return queries, keys
