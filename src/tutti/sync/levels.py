"""Sums in two levels: inside each machine, whose members share a fast link, and between machines, which do not.

A buffer is cut into pieces, one for every *lane*, as many as the machine with the fewest members has. On each machine
member i collects piece i of the others and adds them up; lane i, the members i of all machines, sums the piece over
the network as the codec says; then member i gives the result to the others on its machine. So a machine sends
2 (H − 1)/H buffers for H machines, however many members it has, where a ring of all n members makes it send
2 (n − 1)/n, and members that swap encoded pieces k times as much for its k members; and what stays on a machine is
not rounded. (Two-level reduction as in Goyal et al. 2017, arXiv 1706.02677, section 4.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tutti.sync.transport import Transport

Bounds = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Arrangement:
    """A member's place. `inside`: ranks on its machine. `lane`: ranks that sum the same piece on all machines; none
    where this member has no piece. `lanes`: how many there are."""

    inside: tuple[int, ...]
    lane: tuple[int, ...]
    lanes: int


@dataclass(frozen=True)
class Levels:
    """The members on this machine, and those of this member's lane (None: it has none)."""

    inside: Transport
    across: Transport | None
    lanes: int

    def collect(self, flat: Tensor, bounds: Bounds) -> None:
        """Add up, in this member's piece of `flat` [count], what the members on this machine have there.

        In the order of their ranks, so that it does not matter who adds.
        """
        pieces = [flat[start:stop] for start, stop in bounds]
        own = self.inside.rank
        mine = pieces[own] if own < self.lanes else flat[:0]
        nothing = torch.empty(0, dtype=torch.uint8)
        outgoing = [
            _as_bytes(pieces[place]) if place < self.lanes and place != own else nothing
            for place in range(self.inside.size)
        ]
        incoming = [0 if place == own else mine.nbytes for place in range(self.inside.size)]
        arrived = self.inside.all_to_all(outgoing, incoming)
        total = torch.zeros_like(mine)
        for place, theirs in enumerate(arrived):
            total += mine if place == own else _as_numbers(theirs, mine)
        mine.copy_(total)

    def spread(self, flat: Tensor, bounds: Bounds) -> None:
        """Give this member's piece of `flat` to the others on this machine, and take theirs."""
        own = self.inside.rank
        mine = flat[slice(*bounds[own])] if own < self.lanes else flat[:0]
        nothing, packet = torch.empty(0, dtype=torch.uint8), _as_bytes(mine)
        outgoing = [nothing if place == own else packet for place in range(self.inside.size)]
        pieces = [
            flat[slice(*bounds[place])] if place < self.lanes else flat[:0] for place in range(len(outgoing))
        ]
        incoming = [0 if place == own else piece.nbytes for place, piece in enumerate(pieces)]
        for place, theirs in enumerate(self.inside.all_to_all(outgoing, incoming)):
            if place != own:
                pieces[place].copy_(_as_numbers(theirs, pieces[place]))


def arrange(machines: Sequence[str], rank: int) -> Arrangement | None:
    """The place of member `rank` when member i is on `machines[i]`; None where there are no two levels."""
    members: dict[str, list[int]] = {}
    for member, machine in enumerate(machines):
        members.setdefault(machine, []).append(member)
    if len(members) < 2 or len(members) == len(machines):
        return None
    lanes = min(len(ranks) for ranks in members.values())
    inside = members[machines[rank]]
    place = inside.index(rank)
    lane = [ranks[place] for ranks in members.values()] if place < lanes else []
    return Arrangement(tuple(inside), tuple(lane), lanes)


def _as_bytes(numbers: Tensor) -> Tensor:
    return numbers.cpu().view(torch.uint8)


def _as_numbers(data: Tensor, like: Tensor) -> Tensor:
    """Copied: what arrived may begin anywhere in memory."""
    return data.clone().view(like.dtype).to(like.device)
