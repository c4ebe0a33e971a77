"""Weights that hold several matrices, in a state that every layout can read.

Where tensor parallelism cuts such a weight (GPT-2's query, key and value in one), a rank holds its pieces of all
the matrices, which is no one piece of the weight. In a checkpoint it stands whole and in its own order; such
weights are few, so they are gathered for a save, and cut again after a load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tutti.parallel.load import fill_pieces, unpack_pieces


@dataclass(frozen=True)
class Packed:
    """`weights`: name → (dimension, matrices). `ways`: ranks that cut them."""

    weights: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ways: int = 1

    @torch.no_grad()
    def whole(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """`state` (by name, values or their nested dicts of tensors) with these weights gathered and in order."""
        return {name: self._each(name, value, self._gather) for name, value in state.items()}

    @torch.no_grad()
    def put_back(self, live: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
        """Copy what `whole` gave, perhaps filled with other numbers since, into the pieces of `live`."""
        for name in self.weights.keys() & live.keys():
            pieces = live[name] if isinstance(live[name], dict) else {"": live[name]}
            given = whole[name] if isinstance(whole[name], dict) else {"": whole[name]}
            for key, piece in pieces.items():
                if self._is_cut(name, piece):
                    fill_pieces({name: [piece]}, [(name, given[key])], self.weights, self.ways)

    def _each(self, name: str, value: Any, change: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._each(name, item, change) for key, item in value.items()}
        return change(name, value) if self._is_cut(name, value) else value

    def _is_cut(self, name: str, value: Any) -> bool:
        if name not in self.weights or not isinstance(value, DTensor):
            return False
        dimension = self.weights[name][0]  # along which an optimizer may keep one number instead
        return value.ndim > dimension and value.shape[dimension] > 1

    def _gather(self, name: str, piece: DTensor) -> Tensor:
        return unpack_pieces(piece.full_tensor(), *self.weights[name], self.ways)
