"""What is summed: a flat vector in which parameters lie one after the other, and where it is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tutti.sync.codecs import Shaped

#: Pieces begin at multiples of this, so that no block of numbers is cut.
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Buffer:
    """A flat fp32 vector [count] and the parameters that lie in it."""

    flat: Tensor
    parts: Sequence[Shaped]

    @classmethod
    def of(cls, flat: Tensor, named: Iterable[tuple[str, Tensor]]) -> Buffer:
        """`flat`, in which tensors of these shapes lie one after the other."""
        parts, start = list[Shaped](), 0
        for name, tensor in named:
            parts.append(Shaped(name, tensor.shape, start))
            start += tensor.numel()
        assert start == len(flat)
        return cls(flat, parts)

    @property
    def name(self) -> str:
        """That of its first parameter."""
        return self.parts[0].name

    def piece(self, start: int, stop: int) -> Buffer:
        """Numbers `start` to `stop`: the same memory. Parameters that are cut lose their shape."""
        found = []
        for part in self.parts:
            first, last = max(part.start, start), min(part.start + part.size, stop)
            if first < last:
                shape = part.shape if last - first == part.size else torch.Size([last - first])
                found.append(Shaped(part.name, shape, first - start))
        return Buffer(self.flat[start:stop], found)

    def owner(self, index: int) -> str:
        """The parameter at place `index`."""
        return next(part.name for part in self.parts if index < part.start + part.size)


def piece_bounds(count: int, members: int) -> list[tuple[int, int]]:
    """Where each member's piece of a vector begins and ends; the last ones may be shorter, or empty."""
    step = -(-count // members)
    step += -step % _ALIGNMENT if step > _ALIGNMENT else 0
    return [(min(member * step, count), min((member + 1) * step, count)) for member in range(members)]


def lane_bounds(buffer: Buffer, lanes: int, *, whole_parts: bool) -> list[tuple[int, int]]:
    """Where each lane's piece of `buffer` begins and ends; `whole_parts`: no parameter is cut."""
    bounds = piece_bounds(len(buffer.flat), lanes)
    if not whole_parts:
        return bounds
    edges = [part.start for part in buffer.parts] + [len(buffer.flat)]
    cuts = [min(edges, key=lambda edge: abs(edge - start)) for start, _ in bounds] + [len(buffer.flat)]
    return list(pairwise(cuts))
