"""The same samples in another order for each of several groups, so that most of them have been seen by somebody else.

Positions of the global order are taken in blocks of G · M: G segments, one for each group, of M positions each.
Within a block group g begins with segment g and goes around:

    ρ_g(p) = b·G·M + ((j + g) mod G)·M + o        b = p div G·M,  j = (p mod G·M) div M,  o = p mod M

A bijection of every block, so each group sees every sample of an epoch once, and who asks for position p is told by
pure arithmetic which sample stands there. In the j-th segment of a block (j = 0, …, G − 1) a group meets samples
that j other groups met j·M, …, M positions ago, if all are equally fast. So of all samples (G − 1) ÷ G find
somebody's prediction. That is the most that can be had without computing anything twice: of G groups, one is the
first to meet a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Positions `start` (included) to `stop` (excluded).
_Range = tuple[int, int]


@dataclass(frozen=True)
class Rotation:
    """The order of group `group` of `groups`, in segments of `segment` positions."""

    group: int
    groups: int
    segment: int

    def pieces(self, ranges: Sequence[_Range]) -> list[_Range]:
        """What stands at the positions of `ranges`, as ranges of the global order, in turn."""
        found: list[_Range] = []
        for start, stop in ranges:
            while start < stop:
                until = min(stop, start - start % self.segment + self.segment)
                first = self._at(start)
                if found and found[-1][1] == first:
                    found[-1] = (found[-1][0], first + until - start)
                else:
                    found.append((first, first + until - start))
                start = until
        return found

    def _at(self, position: int) -> int:
        number, offset = divmod(position, self.segment)
        block, turn = divmod(number, self.groups)
        return (block * self.groups + (turn + self.group) % self.groups) * self.segment + offset

    def __str__(self) -> str:
        return f"group {self.group} of {self.groups}, segments of {self.segment} samples"
