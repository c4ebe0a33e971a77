"""How many samples of a step each replica takes, so that all end at the same time.

A replica's rate (samples a second) is measured at every step and smoothed; samples are given out in proportion
(largest remainders, Hamilton's method). What a replica takes only changes when that is foreseen to shorten the
step noticeably, so equal machines keep equal shares whatever the noise. Every member sees the same measurements
and comes to the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Weight of the newest measurement: after 8 steps 94 % of a change have arrived.
_SMOOTHING = 0.3
#: A change has to shorten the step by so much.
_WORTHWHILE = 0.05


class Shares:
    """Of `batch` samples a step. Members are told apart by their replica's number."""

    def __init__(self, batch: int, *, measured: bool) -> None:
        """`measured`: False shares evenly, whatever is measured."""
        self._batch = batch
        self._measured = measured
        self._rates: dict[int, float] = {}
        self._held: dict[int, int] = {}

    def counts(self, members: Sequence[int]) -> list[int]:
        """Samples for each of `members`, in their order; they sum up to the batch."""
        if set(self._held) != set(members):
            self._held = dict(zip(members, even(self._batch, len(members)), strict=True))
        if self._measured and all(member in self._rates for member in members):
            rates = [self._rates[member] for member in members]
            wanted = dict(zip(members, proportional(self._batch, rates), strict=True))
            if self._seconds(wanted) < (1 - _WORTHWHILE) * self._seconds(self._held):
                self._held = wanted
        return [self._held[member] for member in members]

    def begin(self, rates: dict[int, float]) -> None:
        """Forget everything but `rates`, samples a second by member (0: not known), which all members were told."""
        self._rates = {member: rate for member, rate in rates.items() if rate > 0}
        self._held = {}

    def rate(self, member: int) -> float:
        """Samples a second, 0 where that is not known."""
        return self._rates.get(member, 0.0)

    def note(self, member: int, samples: int, seconds: float) -> None:
        """`member` took `seconds` to compute `samples`."""
        if samples < 1 or seconds <= 0:
            return
        rate = samples / seconds
        former = self._rates.get(member)
        self._rates[member] = rate if former is None else former + _SMOOTHING * (rate - former)

    def _seconds(self, counts: dict[int, int]) -> float:
        """How long a step is foreseen to take."""
        return max(count / self._rates[member] for member, count in counts.items())


def even(batch: int, members: int) -> list[int]:
    """As evenly as can be."""
    return [(place + 1) * batch // members - place * batch // members for place in range(members)]


def proportional(batch: int, rates: Sequence[float]) -> list[int]:
    """In proportion to `rates`; nobody gets nothing (it could not be measured any more) while there is enough."""
    exact = [batch * rate / sum(rates) for rate in rates]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(rates)), key=lambda place: (counts[place] - exact[place], place))
    for place in by_remainder[: batch - sum(counts)]:
        counts[place] += 1
    for place, count in enumerate(counts):
        if count == 0 and batch >= len(rates):
            counts[max(range(len(rates)), key=counts.__getitem__)] -= 1
            counts[place] = 1
    return counts
