"""Codec `powersgd`: a matrix as the product of two thin ones, found by one step of power iteration.

Vogels et al. 2019 (arXiv 1905.13727), for sums over members instead of means:

    P ← Σ M_r Q;  P ← orth(P);  Q ← Σ M_rᵀ P;  Σ M_r ≈ P Qᵀ          Q is kept for the next time (warm start)

Vectors, and matrices that would not get smaller, travel as they are. `orth` is Householder's QR: machines of different
kinds may differ in its last bit, and then so do their replicas.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutti.sync.codecs.codec import require_finite
from tutti.sync.transport import Transport


@dataclass(frozen=True)
class Shaped:
    """Part of a flat buffer: a parameter's name and shape, and where it begins."""

    name: str
    shape: torch.Size
    start: int

    @property
    def size(self) -> int:
        """Numbers."""
        return self.shape.numel()


class PowerSGD:
    """`rank`: columns of the thin matrices."""

    name = "powersgd"
    needs_feedback: ClassVar[bool] = True

    def __init__(self, rank: int) -> None:
        self.rank = rank
        #: Warm starts, by parameter; equal on all members.
        self.right: dict[str, Tensor] = {}

    def sent_numbers(self, parts: Sequence[Shaped]) -> tuple[int, int]:
        """fp32 numbers of the first and of the second all-reduce."""
        thin = [self._thin(part) for part in parts]
        first = sum(rows * rank for rows, _, rank in filter(None, thin))
        second = sum(columns * rank for _, columns, rank in filter(None, thin))
        return first, second + sum(part.size for part, t in zip(parts, thin, strict=True) if t is None)

    def sum(self, transport: Transport, flat: Tensor, parts: Sequence[Shaped]) -> tuple[Tensor, Tensor]:
        """About the sum over members of `flat` fp32 [count], and what this member's share of it lacks."""
        require_finite(flat)
        thin = {part.name: found for part in parts if (found := self._thin(part)) is not None}
        matrices = {
            part.name: flat[part.start : part.start + part.size].view(thin[part.name][:2])
            for part in parts
            if part.name in thin
        }
        rest = [flat[part.start : part.start + part.size] for part in parts if part.name not in thin]
        left = [matrix @ self._right(name, thin[name], matrix) for name, matrix in matrices.items()]
        left = [torch.linalg.qr(product).Q for product in _sum_all(transport, left)]
        right = [matrix.T @ basis for matrix, basis in zip(matrices.values(), left, strict=True)]
        right, rest = _split_at(_sum_all(transport, [*right, *rest]), len(right))
        total, lacks = torch.empty_like(flat), flat.clone()
        whole = iter(rest)
        products = {
            name: (basis @ columns.T) for name, basis, columns in zip(matrices, left, right, strict=True)
        }
        for part in parts:
            piece = slice(part.start, part.start + part.size)
            if part.name in products:
                total[piece] = products[part.name].view(-1)
                lacks[piece] -= total[piece] / transport.size
            else:
                total[piece] = next(whole)
                lacks[piece] = 0.0
        self.right.update(zip(matrices, right, strict=True))
        return total, lacks

    def _thin(self, part: Shaped) -> tuple[int, int, int] | None:
        """Rows, columns and rank of the matrix that `part` is sent as; None where nothing would be saved."""
        if len(part.shape) < 2 or part.size == 0:
            return None
        rows, columns = part.shape[0], part.size // part.shape[0]
        rank = min(self.rank, rows, columns)
        return (rows, columns, rank) if (rows + columns) * rank < part.size else None

    def _right(self, name: str, thin: tuple[int, int, int], like: Tensor) -> Tensor:
        if name not in self.right:
            dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            self.right[name] = torch.randn(thin[1], thin[2], generator=dice).to(like.device)
        return self.right[name]


def _sum_all(transport: Transport, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every one of `tensors` summed over the members, in one exchange."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    transport.all_reduce(flat)
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def _split_at(tensors: list[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    return tensors[:count], tensors[count:]
