"""Packets that all members swap, in pieces, so that both directions of a link are busy at once.

A large message fills the queue before a slow link, and the acknowledgements of what comes the other way wait in it: one
direction stands still while the other moves. Between two members at 100 Mbit/s, 4 MB each way took 0.65 s as one
message, and 0.34 s in pieces of 256 KB, which is what the link allows; with 40 ms there and back 0.4 to 1.5 s, and 0.6.
Among four, where each member talks to three at once, steps took as long either way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Of what a member sends to all others in one piece, and pieces that are under way at a time.
_PIECE_BYTES, _UNDER_WAY = 1 << 18, 3

#: Begins one exchange: into a tensor, from a tensor, bytes by member in each of them; gives what waits for its end.
Begin = Callable[[Tensor, Tensor, list[int], list[int]], Callable[[], None]]


def swap(
    outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None, begin: Begin
) -> list[Tensor]:
    """Give `outgoing[i]` (uint8) to member i, get `incoming[i]` bytes from it. `largest`: bytes of the largest packet
    that any member gives to any other, so that all make the same exchanges; None: not everybody knows, so there is
    one."""
    step = max(1, largest if largest is not None else max([*map(len, outgoing), *incoming], default=0))
    if largest is not None:
        step = math.ceil(step / max(1, math.ceil(step * (len(outgoing) - 1) / _PIECE_BYTES)))
    if largest is None or step >= largest:
        arriving = torch.empty(sum(incoming), dtype=torch.uint8)
        begin(arriving, torch.cat(list(outgoing)), list(incoming), [len(packet) for packet in outgoing])()
        return list(torch.split(arriving, list(incoming)))
    found = [torch.empty(size, dtype=torch.uint8) for size in incoming]
    under_way: deque[Callable[[], None]] = deque()
    for start in range(0, largest, step):
        if len(under_way) == _UNDER_WAY:
            under_way.popleft()()
        under_way.append(_piece(outgoing, found, start, step, begin))
    while under_way:
        under_way.popleft()()
    return found


def _piece(
    outgoing: Sequence[Tensor], found: Sequence[Tensor], start: int, step: int, begin: Begin
) -> Callable[[], None]:
    """Begin the exchange of what of every packet lies from `start` to `start + step`."""
    leaving = [packet[start : start + step] for packet in outgoing]
    places = [packet[start : start + step] for packet in found]
    sizes = [len(place) for place in places]
    arriving = torch.empty(sum(sizes), dtype=torch.uint8)
    wait = begin(arriving, torch.cat(leaving), sizes, [len(some) for some in leaving])

    def finish() -> None:
        wait()
        for place, some in zip(places, torch.split(arriving, sizes), strict=True):
            place.copy_(some)

    return finish
