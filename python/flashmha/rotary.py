"""Tables of the rotary embedding for torch, computed by the C++ library in double precision."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Tuple

import torch
from torch import Tensor

from . import _native

__all__ = ["RotaryTables"]


class RotaryTables:
    """cos and sin, float32 [num_positions, rotary_dim / 2], on the devices that ask for them.

    Made for max_position_embeddings positions, and again when more are asked for. With rope_type
    "dynamic" the frequencies are those of the longest sequence so far.
    """

    def __init__(self, head_dim: int, parameters: Mapping[str, Any], max_position_embeddings: int,
                 interleaved: bool, device: torch.device):
        self.parameters = dict(parameters, head_dim=head_dim,
                               max_position_embeddings=max_position_embeddings)
        self.trained, self.interleaved = max_position_embeddings, interleaved
        self.dynamic = parameters.get("rope_type", parameters.get("type")) == "dynamic"
        self._longest = max_position_embeddings
        self._made: Dict[int, Tuple[Tensor, Tensor]] = {}  # on the CPU, by number of rows
        self._tables: Dict[Tuple[torch.device, int], Tuple[Tensor, Tensor]] = {}
        self.tables(max_position_embeddings, device)

    def _rows_for(self, num_positions: int) -> int:
        if num_positions > self._longest:
            self._longest = num_positions if self.dynamic else max(num_positions,
                                                                   2 * self._longest)
        if self.dynamic and num_positions < self.trained:
            return self.trained - 1  # a sequence that needs no other frequencies than the trained
        return self._longest

    def _make(self, rows: int) -> Tuple[Tensor, Tensor]:
        if rows not in self._made:
            self._made.clear()
            self._tables.clear()
            made = _native.rotary_tables(self.parameters, rows)
            self._made[rows] = tuple(torch.from_dlpack(table).clone() for table in made)
        return self._made[rows]

    def tables(self, num_positions: int, device: torch.device) -> Tuple[Tensor, Tensor]:
        """cos and sin with at least num_positions rows."""
        rows = self._rows_for(num_positions)
        key = (device, rows)
        if key not in self._tables:
            if device.type == "meta":
                return tuple(table.to(device) for table in self._make(rows))
            made = self._make(rows)
            self._tables[key] = tuple(table.to(device) for table in made)
        return self._tables[key]

    def place(self, device: torch.device) -> None:
        """Has tables ready on a device: a compiled layer cannot make any."""
        self.tables(self.trained, device)
