"""Which attention probabilities a call with dropout keeps, as a tensor, on any device.

A draw depends on (seed, offset, batch, head, row, column) alone: Philox-4x32 with 7 rounds, eight
columns a call, 16 bits each (docs/decisions/0004-dropout-bits.md). This is for looking at the
matrix, which takes memory that attention itself never needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _philox(counter, key0: int, key1: int):
    # Products of 32-bit numbers wrap around in int64, and keep their bits.
    c0, c1, c2, c3 = counter
    for _ in range(7):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((product1 >> 32) & _MASK ^ c1 ^ key0, product1 & _MASK,
                          (product0 >> 32) & _MASK ^ c3 ^ key1, product0 & _MASK)
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def kept(p: float, seed: int, offset: int, batch: int, num_heads: int, seqlen_q: int,
         seqlen_k: int, device: torch.device) -> Tensor:
    """Boolean [batch, num_heads, seqlen_q, seqlen_k]; True: kept."""
    def numbers(n):
        return torch.arange(n, device=device, dtype=torch.int64)

    heads = numbers(batch * num_heads).view(batch, num_heads, 1, 1)
    rows, blocks = numbers(seqlen_q).view(-1, 1), numbers((seqlen_k + 7) // 8)
    shape = (batch, num_heads, seqlen_q, len(blocks))
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK ^ (offset >> 32) & _MASK
    counter = (blocks.expand(shape), rows.expand(shape), heads.expand(shape),
               torch.full((), offset & _MASK, device=device, dtype=torch.int64).expand(shape))
    draws = torch.stack(_philox(counter, key0, key1), -1)  # [..., blocks, 4]
    draws = torch.stack((draws & 0xFFFF, draws >> 16), -1).flatten(-3)  # columns in order
    # The library takes p as float32.
    threshold = int((1.0 - torch.tensor(p, dtype=torch.float32).item()) * 65536.0 + 0.5)
    return draws[..., :seqlen_k] < threshold
