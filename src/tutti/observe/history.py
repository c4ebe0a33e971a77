"""What really counts of a run's events: restarts make some of them void.

A run restarted from the checkpoint of step s does the steps after s again, so the earlier attempt's step
and validation events after s are *superseded*: they cost time, but are no part of the model. A replica that
came back by *healing* from a living one (asynchronous policies) supersedes nothing but its own repetitions.

With a parameter server a replica may push several gradients within one step; each has its number (`push`), and is void
only if the server died before it had saved it (`serving`, from which push on).
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tutti.core import read_events
from tutti.observe.standing import Standing
from tutti.observe.starts import restarted_alone
from tutti.observe.tail import Event, number, of_a_tracker, when

#: What a step is made of, beside loading and meeting.
_PARTS = ("forward", "backward", "exchange", "optimizer")


@dataclass(frozen=True)
class Step:
    """One optimizer step of the whole run. Seconds are those of the slowest replica; NaN losses stay NaN."""

    step: int
    loss: float
    tokens: int
    seconds: float
    wait_data_seconds: float
    sync_seconds: float
    time: float
    peak_flops: float | None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    #: Of each replica that looked: norm and samples of a part of the gradient, and of the whole.
    looks: tuple[tuple[float, float, float, float], ...] = ()
    #: Of the gradient; None: not known (a pipeline goes both ways at once; runs of older versions).
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    exchange_seconds: float | None = None
    optimizer_seconds: float | None = None


@dataclass
class History:
    """The events of a run, sorted out."""

    starts: list[Event] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    lost_seconds: float = 0.0
    lost_steps: int = 0
    validations: list[Event] = field(default_factory=list)
    #: Steps from which the run was continued: by a restart, or by the user's --resume.
    continued_at: list[int] = field(default_factory=list)
    #: Every other event, by its kind, ordered by time.
    other: dict[str, list[Event]] = field(default_factory=dict)
    first_time: float = 0.0
    last_time: float = 0.0
    #: Between two commands of the user nobody was training; that time isn't the run's.
    idle_seconds: float = 0.0
    restarts: int = 0
    #: (time, rank, its replica, bytes sent so far by that process, step), ordered by time.
    counters: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    #: By step and rank: seconds until this rank had done its share, and waited for others.
    alone: dict[int, dict[int, float]] = field(default_factory=dict)

    @property
    def start(self) -> Event:
        """The last `run_started`, with the world and the choices that hold now."""
        return self.starts[-1] if self.starts else {}

    @property
    def begun(self) -> float:
        """When what goes on, or went on last, began: at a command, or where all began again; a replica that comes
        back by itself begins nothing."""
        together = [event for event in self.starts if not restarted_alone(event)]
        return max((when(event) for event in (*together, *self.of("launched"))), default=self.first_time)

    def process_starts(self, replica: int) -> list[float]:
        """Times at which the processes of `replica` began anew, and with them their counters."""
        starts = [when(e) for e in self.starts if not restarted_alone(e) or e.get("replica") == replica]
        return starts + [when(e) for e in self.of("restart") if e.get("of_replica") in (None, replica)]

    @property
    def wall_seconds(self) -> float:
        """From the first event to the last, without the time between two commands."""
        return max(0.0, self.last_time - self.first_time - self.idle_seconds)

    def of(self, kind: str) -> list[Event]:
        """Events of a kind that is neither step, validation nor run_started."""
        return self.other.get(kind, [])


def read_history(run: Path) -> History:
    """Read all events of the run at `run` and sort them out."""
    return sort_events(
        slim(event) for event in read_events(run) if isinstance(event, dict) and "kind" in event
    )


def slim(event: Event) -> Event:
    """The event without what nobody here needs, by far its largest field."""
    event.pop("samples", None)
    return event


def sort_events(events: Iterable[Event]) -> History:
    """Sort out the events of a run; those of one rank come in the order in which it wrote them."""
    history, steps = History(), list[Event]()
    validations: list[Event] = []
    times: list[float] = []
    for event in events:
        if not of_a_tracker(event):
            times.append(when(event))
        kind = event["kind"]
        if kind == "step":
            steps.append(event)
            if (alone := number(event.get("alone_seconds"))) is not None:
                ranks = history.alone.setdefault(int(event.get("step") or 0), {})
                ranks[int(event.get("rank") or 0)] = alone
            if (sent := number(event.get("bytes_sent"))) is not None:
                rank, replica = int(event.get("rank") or 0), int(event.get("replica") or 0)
                history.counters.append((when(event), rank, replica, int(sent), int(event.get("step") or 0)))
        elif kind == "validation":
            validations.append(event)
        elif kind == "run_started":
            history.starts.append(event)
        else:
            history.other.setdefault(kind, []).append(event)
    times.sort()
    history.counters.sort()
    history.starts.sort(key=when)
    for told in history.other.values():
        told.sort(key=when)
    if times:
        history.first_time, history.last_time = times[0], times[-1]
    standing = Standing(history.starts, *map(history.of, ("healed", "membership", "serving")))
    _find_continuations(history, times, standing)
    _sort_steps(history, steps, standing)
    _sort_validations(history, validations, standing)
    return history


def _find_continuations(history: History, times: list[float], standing: Standing) -> None:
    restarts = history.of("restart")
    before: dict[object, Event] = {}
    by_start = 0
    for start in history.starts:
        rank = start.get("rank")
        if (earlier := before.get(rank)) is not None:
            if (mark := standing.mark(start)) < sys.maxsize:
                history.continued_at.append(mark)
            between = any(when(earlier) < when(restart) <= when(start) for restart in restarts)
            if rank != history.starts[0].get("rank"):
                pass  # another replica of the same command
            elif between or _attempt(start) > 0:
                by_start += 1
            elif not history.of("launched"):
                history.idle_seconds += _largest_gap(times, when(earlier), when(start))
        before[rank] = start
    history.restarts = max(len(restarts), by_start)
    for launched in history.of("launched"):  # commands that go on; what lies before them is nobody's time
        at = bisect.bisect_left(times, when(launched))
        history.idle_seconds += when(launched) - times[at - 1] if at else 0.0


def _attempt(start: Event) -> int:
    return int(start.get("attempt") or 0)


def _largest_gap(times: list[float], begin: float, end: float) -> float:
    inside = [t for t in times if begin <= t <= end]
    return max((b - a for a, b in itertools.pairwise(inside)), default=0.0)


def _sort_steps(history: History, events: list[Event], standing: Standing) -> None:
    leaders = sorted((e for e in events if number(e.get("loss")) is not None), key=when)
    leaders = _one_speaker(history, leaders, standing)
    kept: dict[int, dict[tuple[int, object], Event]] = {}  # step → rank and push → event
    void: list[Event] = []
    for event in leaders:
        ranks = kept.setdefault(int(event.get("step") or 0), {})
        together = standing.together(event)
        rank = 0 if together else int(event.get("rank") or 0)
        key = (rank, _piece(event))
        if not standing.survives(event):
            void.append(event)
        elif key not in ranks:
            ranks[key] = event
        elif together or "push" in event:
            void.append(ranks[key])  # the last write wins
            ranks[key] = event
        else:  # a fast replica makes several local steps while the run makes one
            ranks[key] = one_after_the_other(ranks[key], event)
    history.steps = [
        merge_step(step, list(ranks.values()), history) for step, ranks in sorted(kept.items()) if ranks
    ]
    replicas = max((len({rank for rank, _ in ranks}) for ranks in kept.values()), default=1)
    history.lost_steps = len({event.get("step") for event in void})
    history.lost_seconds = sum(number(event.get("seconds")) or 0.0 for event in void) / max(1, replicas)


def one_after_the_other(first: Event, second: Event) -> Event:
    """Two local steps of one rank as one."""
    joined = dict(second)
    for key in (
        "tokens",
        "seconds",
        "wait_data_seconds",
        "sync_seconds",
        *(f"{part}_seconds" for part in _PARTS),
    ):
        if key in first or key in second:
            joined[key] = (number(first.get(key)) or 0.0) + (number(second.get(key)) or 0.0)
    tokens = [number(event.get("tokens")) or 1.0 for event in (first, second)]
    losses = [number(event.get("loss")) or 0.0 for event in (first, second)]
    joined["loss"] = sum(t * x for t, x in zip(tokens, losses, strict=True)) / sum(tokens)
    return joined


def _piece(event: Event) -> object:
    """What tells apart the gradients that a rank pushed within one step: a dead replica's share may be one more."""
    return (event["push"], str(event.get("cursor"))) if "push" in event else None


def _one_speaker(history: History, leaders: list[Event], standing: Standing) -> list[Event]:
    """Of several events about one step that was made together, that of the lowest rank."""
    begins = [when(start) for start in history.starts]
    speakers: dict[tuple[int, int], Event] = {}
    for_themselves = []
    for event in leaders:
        if not standing.together(event):
            for_themselves.append(event)
            continue
        key = (bisect.bisect_right(begins, when(event)), int(event.get("step") or 0))
        if key not in speakers or int(event.get("rank") or 0) < int(speakers[key].get("rank") or 0):
            speakers[key] = event
    return sorted([*speakers.values(), *for_themselves], key=when)


def merge_step(step: int, events: list[Event], history: History) -> Step:
    """What replicas say of one step, as one."""

    def total(key: str) -> float:
        return sum(number(event.get(key)) or 0.0 for event in events)

    def slowest(key: str) -> float:
        spent: dict[object, float] = {}
        for event in events:
            spent[event.get("rank")] = spent.get(event.get("rank"), 0.0) + (number(event.get(key)) or 0.0)
        return max(spent.values())

    def of_all(key: str, choose: Callable[[list[float]], float]) -> float | None:
        found = [value for event in events if (value := number(event.get(key))) is not None]
        return choose(found) if len(found) == len(events) else None

    weights = [number(event.get("tokens")) or 1.0 for event in events]
    losses = [number(event.get("loss")) for event in events]
    loss = sum(w * (x if x is not None else math.nan) for w, x in zip(weights, losses, strict=True))
    time = min(when(event) for event in events)
    peaks = [number(s.get("peak_flops")) for s in history.starts if when(s) <= time]
    return Step(
        step=step,
        loss=loss / sum(weights),
        tokens=int(total("tokens")),
        seconds=slowest("seconds"),
        wait_data_seconds=slowest("wait_data_seconds"),
        sync_seconds=slowest("sync_seconds"),
        time=time,
        peak_flops=peaks[-1] if peaks else None,
        learning_rate=of_all("learning_rate", max),
        gradient_norm=of_all("gradient_norm", _largest),
        looks=tuple(look for event in events if (look := _look(event)) is not None),
        **{f"{part}_seconds": of_all(f"{part}_seconds", max) for part in _PARTS},
    )


def _look(event: Event) -> tuple[float, float, float, float] | None:
    found = [number(event.get(k)) for k in ("first_norm", "first_samples", "gradient_norm", "batch_samples")]
    part, small, whole, large = found
    if part is None or small is None or whole is None or large is None:
        return None
    return (part, small, whole, large) if math.isfinite(part + whole) and 0 < small < large else None


def _largest(values: list[float]) -> float:
    """NaN, where there is any: `max` may not see it."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def _sort_validations(history: History, events: list[Event], standing: Standing) -> None:
    by_step: dict[int, Event] = {}
    for event in sorted(events, key=when):
        if number(event.get("loss")) is not None and standing.survives(event):
            by_step[int(event.get("step") or 0)] = event
    history.validations = [by_step[step] for step in sorted(by_step)]
