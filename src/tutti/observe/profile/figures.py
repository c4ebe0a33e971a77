"""The figures of a profile, all of them of one step, made of events alone.

A rank's step is what it loads and computes by itself (`alone`), what it exchanges, its optimizer, and the meetings of
rounds. Of the time between its own share and the end of the exchange the rank that is done first waits for the one that
is done last, and the rest is communication:

    waiting       = last rank's alone − own alone              (at most exchange + meetings)
    communication = exchange + meetings − waiting

With rounds ranks wait where they meet, so both are told from all steps together. Meetings of rounds that were shortened
for the profile count as often as they will be held; saves and validations count by how often they are due.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tutti.observe import words
from tutti.observe.figures import share_of_peak
from tutti.observe.profile.ranks import RankSteps, read_ranks
from tutti.observe.tail import Event, number

#: A worker that waits so much of a step for a processor shares it with somebody.
_CROWDED = 0.2


@dataclass(frozen=True)
class Figures:
    """Of one step. `parts`: its seconds by what they went into, the mean over ranks; they add up to `seconds`.
    `slowest`: until the last rank had done its share. `planned`: what the run is to be; `start`: its event
    `run_started`; `ways`: other ways to agree, with the seconds predicted of each (None: not measured)."""

    seconds: float
    parts: dict[str, float]
    slowest: float
    ranks: list[RankSteps]
    planned: dict[str, Any]
    start: Event
    ways: dict[str, Any] | None

    @property
    def computing(self) -> float:
        """Seconds of forward and backward."""
        return sum(self.parts.get(part, 0.0) for part in ("forward", "backward", "compute"))

    @property
    def trace(self) -> Event:
        """What the first rank that has a trace found in it."""
        return next((rank.said["traced"] for rank in self.ranks if "traced" in rank.said), {})

    @property
    def flops(self) -> float | None:
        """Operations of a step, all ranks together: the model's, or where they are not known, what was traced."""
        token, tokens = (number(self.start.get(key)) for key in ("flops_per_token", "tokens_per_step"))
        if token and tokens:
            return token * tokens
        traced = [number(rank.said.get("traced", {}).get("flops")) or 0.0 for rank in self.ranks]
        return sum(traced) or None

    @property
    def peak_flops(self) -> float | None:
        """What matrix products reached here, all workers together, FLOP/s."""
        return number(self.start.get("peak_flops")) or None

    @property
    def mfu(self) -> float | None:
        """Share of the peak over the whole step; None also where a busy moment has spoiled the measured peak."""
        return self._share_of_peak(self.seconds)

    @property
    def utilisation(self) -> float | None:
        """Share of the peak in forward and backward alone."""
        return self._share_of_peak(self.computing)

    def _share_of_peak(self, seconds: float) -> float | None:
        if not self.flops or not self.peak_flops:
            return None
        return share_of_peak(self.flops, self.peak_flops * seconds)

    @property
    def products_share(self) -> float | None:
        """Share of the operators' own time that went into matrix products."""
        own = sum(number(self.trace.get(key)) or 0.0 for key in ("own_seconds", "device_seconds"))
        products = number(self.trace.get("products_seconds"))
        if products is None or own <= 0:
            return None
        device = number(self.trace.get("device_seconds")) or 0.0
        return min(1.0, products / (device or own))

    @property
    def peak_bytes(self) -> int:
        """Resident memory of all ranks, each at its largest."""
        return sum(rank.peak_bytes or 0 for rank in self.ranks)

    @property
    def memory_bytes(self) -> int | None:
        """What there is for them: the machine's memory, or the container's limit."""
        told = [number(rank.said.get("tracing", {}).get("memory_bytes")) for rank in self.ranks]
        found = [int(x) for x in told if x]
        return min(found) if found else None

    def used(self, counter: str) -> float | None:
        """How much of a counter a step took, all ranks together; None: not known."""
        found = [x for rank in self.ranks if (x := rank.used_in_step(counter)) is not None]
        return sum(found) if found else None

    @property
    def notes(self) -> list[str]:
        """What is to be known of the figures before anybody acts on them."""
        delays = [x for rank in self.ranks if (x := rank.used_in_step("delayed_seconds")) is not None]
        delay = max(delays, default=0.0)
        if delay < _CROWDED * self.seconds:
            return []
        return [
            f"something else uses these cores: a worker waited for one in {words.percent(delay / self.seconds)} of a "
            "step, and every figure here is of that; profile again when the machine is quiet"
        ]

    @property
    def stalled(self) -> float | None:
        """Seconds of a step in which somebody on the machine stood still for want of memory, at most all of it."""
        found = [x for rank in self.ranks if (x := rank.used_in_step("stalled_seconds")) is not None]
        return min(max(found), self.seconds) if found else None  # every rank tells of the whole machine


def read_profile(events: Iterable[Event]) -> Figures | None:
    """The figures of a profiled run from its events, those of each rank in their order; None: no step was measured."""
    listed = list(events)
    ranks = read_ranks(listed)
    if not ranks:
        return None
    said = {e.get("phase"): e for e in listed if e.get("kind") == "profile" and int(e.get("rank") or 0) < 0}
    planned = said.get("planned", {})
    start = next((e for e in listed if e.get("kind") == "run_started"), {})
    slowest, waits = _waits(ranks, drifts=bool(planned.get("drifts")))
    rounds = number(planned.get("rounds_held")) or 1.0  # of those in the profile, as many as will be held
    parts: dict[str, float] = {}
    for rank in ranks:
        for part, seconds in _parts(rank, waits[rank.rank], rounds).items():
            parts[part] = parts.get(part, 0.0) + seconds / len(ranks)
    parts["checkpoint"] = _due(listed, "checkpoint", "blocked_seconds", planned.get("checkpoint_every"))
    parts["validation"] = _due(listed, "validation", "seconds", planned.get("validate_every"))
    return Figures(
        seconds=sum(parts.values()),
        parts=parts,
        slowest=slowest,
        ranks=ranks,
        planned=planned,
        start=start,
        ways=said.get("ways"),
    )


def _waits(ranks: list[RankSteps], *, drifts: bool) -> tuple[float, dict[int, float]]:
    """Seconds of a step until the last rank had done its share, and how long each waited for it."""
    alone = {rank.rank: {step: s.get("alone", 0.0) for step, s in rank.steps} for rank in ranks}
    if drifts:
        means = {rank.rank: rank.mean("alone") or 0.0 for rank in ranks}
        last = max(means.values())
        return last, {rank: last - seconds for rank, seconds in means.items()}
    steps = sorted(set.intersection(*(set(found) for found in alone.values())))
    if not steps:
        return max(rank.mean("alone") or 0.0 for rank in ranks), {rank.rank: 0.0 for rank in ranks}
    slowest = {step: max(found[step] for found in alone.values()) for step in steps}
    waits = {
        rank: sum(slowest[step] - found[step] for step in steps) / len(steps) for rank, found in alone.items()
    }
    return sum(slowest.values()) / len(steps), waits


def _parts(rank: RankSteps, wait: float, rounds: float) -> dict[str, float]:
    seconds = {part: rank.mean(part) for part in ("data", "forward", "backward", "optimizer")}
    found = {part: value for part, value in seconds.items() if value is not None}
    exchange, meeting = rank.mean("exchange") or 0.0, (rank.mean("sync") or 0.0)
    alone, whole = rank.mean("alone") or 0.0, rank.mean("seconds") or 0.0
    if "forward" not in found:  # a pipeline goes both ways at once
        found["compute"] = max(0.0, alone - found.get("data", 0.0))
    between = exchange + meeting
    known = sum(found.values()) + between
    kept = (exchange + meeting * rounds) / between if between > 0 else 1.0
    waiting = min(wait, between)
    found["waiting"] = waiting * kept
    found["communication"] = (between - waiting) * kept
    found["other"] = max(0.0, whole - known)
    return found


def _due(events: list[Event], kind: str, key: str, every: Any) -> float:
    """Seconds a step of what is done every so many steps; the first time may have taken longer than all others."""
    times = [number(event.get(key)) or 0.0 for event in events if event.get("kind") == kind]
    return min(times) / every if times and isinstance(every, int) and every > 0 else 0.0
