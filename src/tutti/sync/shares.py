"""How much of what is to be done each replica takes, so that all end at the same time.

What is given out is samples of a step, or local steps of a round. A replica's rate is measured every time and smoothed;
shares are in proportion (largest remainders, Hamilton's method). They only change when that is foreseen to save time
noticeably, so equal machines keep equal shares whatever the noise. Every member sees the same measurements and comes
to the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Weight of the newest measurement: after 8 steps 94 % of a change have arrived.
_SMOOTHING = 0.3
#: A change has to shorten the step by so much.
_WORTHWHILE = 0.05


class Shares:
    """Members are told apart by their replica's number."""

    def __init__(self, *, measured: bool) -> None:
        """`measured`: False shares evenly, whatever is measured."""
        self._measured = measured
        self._rates: dict[int, float] = {}
        self._held: dict[int, int] = {}

    def counts(self, total: int, members: Sequence[int]) -> list[int]:
        """The part of each of `members`, in their order; they sum up to `total`."""
        if set(self._held) != set(members) or sum(self._held.values()) != total:
            self._held = dict(zip(members, even(total, len(members)), strict=True))
        if self._measured and all(member in self._rates for member in members):
            rates = [self._rates[member] for member in members]
            wanted = dict(zip(members, proportional(total, rates), strict=True))
            if self._seconds(wanted) < (1 - _WORTHWHILE) * self._seconds(self._held):
                self._held = wanted
        return [self._held[member] for member in members]

    def after_loss(self, total: int, members: Sequence[int]) -> list[int]:
        """What `counts` would give if `members` were all who are left of those whose rates are known, and had begun."""
        left = Shares(measured=self._measured)
        left.begin({member: round(1000 * self.rate(member)) / 1000 for member in members})
        return left.counts(total, members)

    def begin(self, rates: dict[int, float]) -> None:
        """Forget everything but `rates` by member (0: not known), which all members were told."""
        self._rates = {member: rate for member, rate in rates.items() if rate > 0}
        self._held = {}

    def rate(self, member: int) -> float:
        """Of `member`, a second; 0 where that is not known."""
        return self._rates.get(member, 0.0)

    def note(self, member: int, done: int, seconds: float) -> None:
        """`member` did so much in `seconds`."""
        if done < 1 or seconds <= 0:
            return
        rate = done / seconds
        former = self._rates.get(member)
        self._rates[member] = rate if former is None else former + _SMOOTHING * (rate - former)

    def state(self) -> dict[str, dict[int, float]]:
        """What a newcomer has to know."""
        return {"rates": dict(self._rates), "held": {member: float(n) for member, n in self._held.items()}}

    def load_state(self, state: dict[str, dict[int, float]]) -> None:
        """Know what `state()` said."""
        self._rates = dict(state["rates"])
        self._held = {member: round(n) for member, n in state["held"].items()}

    def _seconds(self, counts: dict[int, int]) -> float:
        """How long it is foreseen to take."""
        return max(count / self._rates[member] for member, count in counts.items())


def even(total: int, members: int) -> list[int]:
    """As evenly as can be."""
    return [(place + 1) * total // members - place * total // members for place in range(members)]


def proportional(total: int, rates: Sequence[float]) -> list[int]:
    """In proportion to `rates`; nobody gets nothing (it could not be measured any more) while there is enough."""
    exact = [total * rate / sum(rates) for rate in rates]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(rates)), key=lambda place: (counts[place] - exact[place], place))
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    for place, count in enumerate(counts):
        if count == 0 and total >= len(rates):
            counts[max(range(len(rates)), key=counts.__getitem__)] -= 1
            counts[place] = 1
    return counts
