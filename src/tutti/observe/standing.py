"""What of a run counts after all its restarts: which steps stand, and whether replicas made them together.

Everything that can be known of a start is found once, so that each of many events costs a look into a sorted list.
"""

from __future__ import annotations

import bisect
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tutti.observe.starts import made_together, restarted_alone
from tutti.observe.tail import Event, when


class Standing:
    """Of the `starts` of a run, by time, and what else its events say: who was `healed`, which `meetings` there were,
    and what a parameter server began with (`serving`)."""

    def __init__(
        self,
        starts: Sequence[Event],
        healed: Iterable[Event],
        meetings: Iterable[Event],
        serving: Iterable[Event],
    ) -> None:
        self._starts, self._times = starts, [when(start) for start in starts]
        self._healed, self._met = _by_rank(healed), _by_rank(meetings)
        self._own_starts = _by_rank(starts)
        alone: dict[object, list[tuple[float, float]]] = defaultdict(list)
        everybody: list[tuple[float, float]] = []
        for start in starts:
            bounds = alone[start.get("rank")] if restarted_alone(start) else everybody
            bounds.append((when(start), self.mark(start)))
        self._everybody = _Bounds(everybody)
        self._alone = {rank: _Bounds(bounds) for rank, bounds in alone.items()}
        self._pushes = _Bounds(
            [(when(one), int(one.get("push") or 0)) for one in serving if one.get("restored")]
        )

    def mark(self, start: Event) -> int:
        """The last step of earlier attempts that this start leaves standing."""
        resumed = int(start.get("resumed_from") or 0)
        if not restarted_alone(start):
            return resumed
        rank, began = start.get("rank"), when(start)
        own = [when(one) for one in self._own_starts[rank]]
        later = bisect.bisect_right(own, began)
        end = own[later] if later < len(own) else math.inf
        if not any(began <= when(one) < end for one in self._healed[rank]):
            return resumed
        if made_together(start):
            return sys.maxsize  # a step is written when it counts for all
        # It has its peers' weights. What it did until its last meeting is in them; what it did after that is not.
        return max((int(one.get("step") or 0) for one in self._met[rank] if when(one) < began), default=0)

    def survives(self, event: Event) -> bool:
        """Whether no later start that concerns the event's rank went back behind its step."""
        step, rank, push, moment = (
            int(event.get("step") or 0),
            event.get("rank"),
            event.get("push"),
            when(event),
        )
        if push is not None and push > self._pushes.after(moment):
            return False
        if step > self._everybody.after(moment):
            return False
        return push is not None or rank not in self._alone or step <= self._alone[rank].after(moment)

    def together(self, event: Event) -> bool:
        """Whether the replicas made the step of this event together, so that any of them speaks for all."""
        before = bisect.bisect_right(self._times, when(event))
        return not before or made_together(self._starts[before - 1])


class _Bounds:
    """Moments with a bound each, by time."""

    def __init__(self, bounds: Sequence[tuple[float, float]]) -> None:
        self._times = [time for time, _ in bounds]
        self._least = [math.inf] * (len(bounds) + 1)
        for at in range(len(bounds) - 1, -1, -1):
            self._least[at] = min(bounds[at][1], self._least[at + 1])

    def after(self, moment: float) -> float:
        """The least bound of those that come after `moment`; infinite where none does."""
        return self._least[bisect.bisect_right(self._times, moment)]


def _by_rank(events: Iterable[Event]) -> dict[object, list[Event]]:
    found: dict[object, list[Event]] = defaultdict(list)
    for event in events:
        found[event.get("rank")].append(event)
    return found
