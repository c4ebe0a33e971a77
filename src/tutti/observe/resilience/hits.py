"""What hit a run, when the victim was back, and how long the others stood still because of it.

A **hit** is a disturbance that `tutti chaos` wrote down, or a replica's death that nobody planned (a restart that no
disturbance explains).

**Recovery**: from the hit to the end of the victim's first step whose samples count. After a death, of a process that
was started later; after a stop, of a step that ended later; of a slowed or cut replica, of any step that ended later.

**Stall** of a survivor: a step lasts from the end of the step that counts before it to its own end, validation taken
off. What is more than a normal step is stall, if it is more than half a normal step: machines breathe.

    stall  =  Σ (duration − normal)      over the hit's steps with duration > 1.5 normal
    normal =  median of this replica's steps that no hit touched; of those with a meeting and of the others apart

Who makes the samples of one that is gone beside his own is slower, but does not stand still: where a step's samples
are shared out, what is normal grows with this replica's share of them. (What the others' help costs stands in the
goodput.)

A step belongs to the hit that was the last to begin before the step should have ended, among those that were not
over when it began. Steps that a restart made void are not steps that count, so the time that went into them is in the
stall. A hit is over when it has ended and its victim has recovered.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from tutti.core.ranges import merge
from tutti.observe.resilience.spans import total
from tutti.observe.resilience.trace import Step, Trace
from tutti.observe.tail import Event, number, when

#: A step that took less than so many normal ones is taken as normal.
_TOLERANCE = 1.5
#: Fewer steps than this say nothing about what is normal.
_FEWEST = 3


@dataclass
class Hit:
    """`victim` None: it is not known whose death it was. `planned`: `tutti chaos` did it."""

    what: str
    victim: int | None
    began: float
    ended: float
    seconds: float = 0.0
    speed: float = 1.0
    planned: bool = True
    recovered: float | None = None
    #: Survivor → seconds.
    stalls: dict[int, float] = field(default_factory=dict)

    @property
    def over(self) -> float:
        """From when on nothing is due to it (never: the victim did not come back)."""
        return math.inf if self.recovered is None else max(self.ended, self.recovered)

    @property
    def recovery_seconds(self) -> float | None:
        """None: the victim did not come back."""
        return None if self.recovered is None else self.recovered - self.began


def find_hits(trace: Trace) -> list[Hit]:
    """All hits of `trace`, oldest first, with recovery and stalls."""
    hits = _planned(trace)
    for hit in hits:
        hit.recovered = _recovery(hit, trace)
    for restart in trace.of("restart"):
        if not any(_explains(hit, restart) for hit in hits):
            death = Hit("death", _who_died(restart, trace), when(restart), when(restart), planned=False)
            death.recovered = _recovery(death, trace)
            hits.append(death)
    hits.sort(key=lambda hit: hit.began)
    _share_out_stalls(hits, trace)
    return hits


def _planned(trace: Trace) -> list[Hit]:
    hits: dict[object, Hit] = {}
    for event in trace.of("disturbance"):
        key, state, now = event.get("number"), event.get("state"), when(event)
        if state == "began":
            hits[key] = Hit(
                what=str(event.get("what")),
                victim=int(event.get("of_replica") or 0),
                began=now,
                ended=now + (number(event.get("seconds")) or 0.0),
                seconds=number(event.get("seconds")) or 0.0,
                speed=number(event.get("speed")) or 1.0,
            )
        elif state == "ended" and key in hits:
            hits[key].ended = now
    return list(hits.values())


def _explains(hit: Hit, restart: Event) -> bool:
    theirs = restart.get("of_replica")
    concerned = theirs is None or hit.victim is None or theirs == hit.victim
    return concerned and hit.began <= when(restart) <= hit.over


def _who_died(restart: Event, trace: Trace) -> int | None:
    """The replica that a restart is about; with fixed members all are restarted, and the reason names a rank."""
    if isinstance(restart.get("of_replica"), int):
        return int(restart["of_replica"])
    found = re.search(r"worker (\d+) ", str(restart.get("reason", "")))
    if found is None:
        return None
    return next((step.replica for step in trace.steps if step.rank == int(found[1])), None)


def _recovery(hit: Hit, trace: Trace) -> float | None:
    since = hit.ended if hit.what == "stop" else hit.began
    if hit.what in ("kill", "death"):
        again = (
            when(e)
            for e in trace.of("restart")
            if when(e) >= hit.began and (e.get("of_replica") in (None, hit.victim) or hit.victim is None)
        )
        since = next(again, math.inf)
    steps = (step for step in trace.kept_steps(hit.victim) if step.time > since)
    return next((step.time for step in steps if trace.counts(step)), None)


# Stalls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Duration:
    begin: float
    end: float
    seconds: float
    meeting: bool
    #: That this replica made in it; 0 where steps are not shared out.
    samples: int = 0


def _share_out_stalls(hits: Sequence[Hit], trace: Trace) -> None:
    touched = merge((hit.began, hit.over) for hit in hits)
    for replica in sorted({step.replica for step in trace.steps}):
        durations = _durations(trace, replica)
        usual = {kind: _normal(durations, kind, touched) for kind in (False, True)}
        share = (
            statistics.median(d.samples for d in _quiet(durations, touched) or durations) if durations else 0
        )
        for hit in hits:
            if hit.victim != replica:
                hit.stalls[replica] = 0.0
        for duration in durations:
            more = duration.samples / share if share else 1.0
            normal = usual[duration.meeting] * max(1.0, more)
            if duration.seconds > _TOLERANCE * normal:
                hit_by = _blamed(duration, normal, hits)
                if hit_by is not None and hit_by.victim != replica:
                    hit_by.stalls[replica] += duration.seconds - normal


def _durations(trace: Trace, replica: int) -> list[_Duration]:
    steps = trace.kept_steps(replica)
    launches = [when(event) for event in trace.of("launched")]
    validations = [
        (when(event), number(event.get("seconds")) or 0.0)
        for event in trace.of("validation")
        if not trace.rounds or event.get("replica") == replica  # all replicas together, or one alone
    ]
    pairs: list[tuple[Step, float, bool, int]] = [
        (before, step.time, step.meeting, 0 if trace.rounds else total(step.spans))
        for before, step in itertools.pairwise(steps)
    ]
    if steps and not any(when(event) >= steps[-1].time for event in trace.of("finished")):
        pairs.append((steps[-1], trace.end, False, 0))  # it never made another step
    durations = []
    for before, end, meeting, samples in pairs:
        begin = before.time
        if any(begin < launch <= end for launch in launches):
            continue  # nobody was training between two commands
        known = sum(seconds for time, seconds in validations if begin < time <= end)
        durations.append(_Duration(begin, end, max(0.0, end - begin - known), meeting, samples))
    return durations


def _normal(durations: Sequence[_Duration], meeting: bool, touched: Sequence[tuple[float, float]]) -> float:
    """Median of the undisturbed; of all where these are too few; of both kinds where there are none of this."""
    alike = [d for d in durations if d.meeting == meeting] or list(durations)
    quiet = _quiet(alike, touched)
    chosen = quiet if len(quiet) >= _FEWEST else alike
    return statistics.median(d.seconds for d in chosen) if chosen else 0.0


def _quiet(durations: Sequence[_Duration], touched: Sequence[tuple[float, float]]) -> list[_Duration]:
    """Those that no hit touched."""
    quiet = []
    for duration in durations:
        before = bisect.bisect_left(touched, (duration.end, 0.0))  # the spans that began before its end
        if before == 0 or touched[before - 1][1] <= duration.begin:
            quiet.append(duration)
    return quiet


def _blamed(duration: _Duration, normal: float, hits: Sequence[Hit]) -> Hit | None:
    touching = [hit for hit in hits if hit.began < duration.end and hit.over > duration.begin]
    in_time = [hit for hit in touching if hit.began <= duration.begin + normal]
    return in_time[-1] if in_time else touching[0] if touching else None
