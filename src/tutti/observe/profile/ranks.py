"""What each rank says of its measured steps: means of a step, and what its process used in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tutti.observe.tail import Event, number

#: Seconds of a step event, by the name that they have here.
_SECONDS = {
    "seconds": "seconds",
    "data": "wait_data_seconds",
    "forward": "forward_seconds",
    "backward": "backward_seconds",
    "exchange": "exchange_seconds",
    "optimizer": "optimizer_seconds",
    "sync": "sync_seconds",
    "alone": "alone_seconds",
}


@dataclass
class RankSteps:
    """The measured steps of a rank. `steps`: of each its number and its seconds by part (a part that it does not tell
    is missing); `used`: by each of `Counters`, what grew meanwhile (None: not known)."""

    rank: int
    replica: int
    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    samples: int = 0
    sent_bytes: int = 0
    used: dict[str, float | None] = field(default_factory=dict)
    peak_bytes: int | None = None
    #: The events `profile` of this rank, by their phase.
    said: dict[str, Event] = field(default_factory=dict)

    def mean(self, part: str) -> float | None:
        """Seconds of `part` in a step; None: not told."""
        found = [seconds[part] for _, seconds in self.steps if part in seconds]
        return sum(found) / len(found) if found and len(found) == len(self.steps) else None

    def used_in_step(self, counter: str) -> float | None:
        """How much of a counter a step took."""
        used = self.used.get(counter)
        return None if used is None else used / max(1, len(self.steps))

    @property
    def rate(self) -> float | None:
        """Samples a second while it worked by itself; None: it had none."""
        alone = (self.mean("alone") or 0.0) * len(self.steps)
        return self.samples / alone if self.samples and alone > 0 else None

    @property
    def busy(self) -> float | None:
        """Share of the time in which it computed that it had a processor for each of its threads, at most 1."""
        used = [self.used.get(key) for key in ("user_seconds", "system_seconds")]
        alone, loading = (
            self.mean("alone") or 0.0,
            self.mean("data") or 0.0,
        )  # which may be somebody else's work
        working = (alone - loading + (self.mean("optimizer") or 0.0)) * len(self.steps)
        threads = int(number(self.said.get("tracing", {}).get("threads")) or 1)
        if None in used or working <= 0:
            return None
        return min(1.0, sum(x or 0.0 for x in used) / (working * threads))


def read_ranks(events: Iterable[Event]) -> list[RankSteps]:
    """The ranks that measured steps, by their numbers; the events of one rank come in its order."""
    ranks: dict[int, RankSteps] = {}
    sent: dict[int, int] = {}
    for event in events:
        rank, kind = int(event.get("rank") or 0), event.get("kind")
        if rank < 0:  # the launcher, a server
            continue
        found = ranks.setdefault(rank, RankSteps(rank, int(event.get("replica") or 0)))
        if kind == "profile":
            found.said[str(event.get("phase"))] = event
        elif kind == "memory":
            found.peak_bytes = max(found.peak_bytes or 0, int(event.get("peak_memory_bytes") or 0))
        elif kind == "step":
            bytes_sent = int(event.get("bytes_sent") or 0)
            if "measuring" in found.said and "tracing" not in found.said:
                _add(found, event)
                found.sent_bytes += bytes_sent - sent.get(rank, 0)
            sent[rank] = bytes_sent
    for found in ranks.values():
        found.used = _difference(found.said.get("measuring", {}), found.said.get("tracing", {}))
    return [ranks[rank] for rank in sorted(ranks) if ranks[rank].steps]


def _add(found: RankSteps, event: Event) -> None:
    seconds = {name: x for name, key in _SECONDS.items() if (x := number(event.get(key))) is not None}
    found.steps.append((int(event.get("step") or 0), seconds))
    pieces: Any = event.get("cursor") or ()
    found.samples += sum(int(stop) - int(start) for start, stop in pieces)


def _difference(before: Event, after: Event) -> dict[str, float | None]:
    first, last = before.get("counters") or {}, after.get("counters") or {}
    found = {}
    for name in last:
        old, new = number(first.get(name)), number(last[name])
        found[name] = None if old is None or new is None else max(0.0, new - old)
    return found
