"""Which work of a run counts: its steps and its ledger, with what a restart made void marked or left out.

Under `allreduce` a step counts once it is made, unless a later event of the same rank has its number or a smaller one:
then the run went back to a checkpoint, and everybody's steps from there on are void (only its own, if it was healed).

Under policies of rounds the ledger's events say what counts: `commit`. Every member that met writes all of them, so one
entry has several witnesses. A member that writes a round that it has written before went back to a checkpoint, and
everybody's entries from that round on are void. (A member that is *healed* goes on in its peers' round instead.)
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutti.core import read_events
from tutti.core.ranges import merge
from tutti.observe.resilience.spans import Span, meet, total
from tutti.observe.tail import Event, number, when

_MEMBER = re.compile(r"replica-(\d+)\.")


@dataclass
class Step:
    """One step as one rank made it. `tokens`, `seconds`: of the rank that speaks for others.

    `again`: how often the rank had made a step of that number before. `meeting`: the replicas met in it. `healed`: it
    had taken its peers' state since its last step. `kept`: it was not made void.
    """

    time: float
    rank: int
    replica: int
    step: int
    spans: list[Span]
    tokens: float | None
    seconds: float
    again: int = 0
    meeting: bool = False
    healed: bool = False
    kept: bool = True


@dataclass
class Entry:
    """One line of the ledger: `commit`, `return` or `lease` in meeting number `round`, as its last witness wrote it."""

    time: float
    kind: str
    round: int
    replica: int
    spans: list[Span]


@dataclass
class Trace:
    """The steps and the ledger of a run, ordered by time, and every other event by kind."""

    steps: list[Step] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    other: dict[str, list[Event]] = field(default_factory=dict)
    end: float = 0.0

    @property
    def rounds(self) -> bool:
        """Whether the ledger's events say what counts."""
        return bool(self.entries)

    def of(self, kind: str) -> list[Event]:
        """Events of a kind that is neither a step nor of the ledger."""
        return self.other.get(kind, [])

    def kept_steps(self, replica: int | None) -> list[Step]:
        """Steps of the rank that speaks for `replica` (None: of every such rank) that were not made void."""
        speakers: dict[int, int] = {}
        for step in self.steps:
            speakers[step.replica] = min(speakers.get(step.replica, step.rank), step.rank)
        return [
            s for s in self.steps if s.kept and s.rank == speakers[s.replica] and replica in (None, s.replica)
        ]

    def counts(self, step: Step) -> bool:
        """Whether what this step learnt is in the model: of the ledger's answers the first after it decides."""
        if not self.rounds:
            return step.kept
        later = bisect.bisect_left(self.entries, step.time, key=lambda entry: entry.time)
        for entry in self.entries[later:]:
            settled = entry.kind != "lease" and entry.replica == step.replica
            if settled and meet(step.spans, entry.spans):
                return entry.kind == "commit"
        return False

    @property
    def tokens_per_sample(self) -> float:
        """From what speakers say of their tokens and the positions of all for whom they speak (0: nobody said)."""
        positions: dict[tuple[int, int, int], list[Span]] = {}
        tokens: dict[tuple[int, int, int], float] = {}
        for step in self.steps:
            key = (step.replica if self.rounds else 0, step.step, step.again)
            positions.setdefault(key, []).extend(step.spans)
            if step.tokens is not None:
                tokens[key] = max(tokens.get(key, 0.0), step.tokens)
        # A rank that died before it could write leaves positions out, never in.
        ratios = [tokens[key] / n for key in tokens if (n := total(merge(positions[key])))]
        return min(ratios, default=0.0)


def read_trace(run: Path) -> Trace:
    """Read all events of the run at `run`."""
    trace = Trace()
    ledger: list[Event] = []
    steps: list[tuple[Event, Step]] = []
    healed: set[object] = set()
    events = [event for event in read_events(run) if isinstance(event, dict) and "kind" in event]
    for event in sorted(events, key=when):  # stable: a rank's events stay in order
        trace.end = when(event)
        kind = str(event["kind"])
        if kind == "step":
            steps.append((event, _step(event)))
            steps[-1][1].healed = event.get("rank") in healed
            healed.discard(event.get("rank"))
        elif kind in ("commit", "return", "lease"):
            ledger.append(event)
        else:
            trace.other.setdefault(kind, []).append(event)
            if kind == "healed":
                healed.add(event.get("rank"))
            if kind == "membership":
                ledger.append(event)
                last = next((s for _, s in reversed(steps) if s.rank == event.get("rank")), None)
                if last is not None:
                    last.meeting = True
    trace.entries = _entries(ledger)
    trace.steps = [step for _, step in steps]
    _mark_void(trace.steps, together=not trace.rounds)
    return trace


def _step(event: Event) -> Step:
    return Step(
        time=when(event),
        rank=int(event.get("rank") or 0),
        replica=int(event.get("replica") or 0),
        step=int(event.get("step") or 0),
        spans=_spans(event.get("cursor")),
        tokens=number(event.get("tokens")),
        seconds=number(event.get("seconds")) or 0.0,
    )


def _spans(value: Any) -> list[Span]:
    pairs: Iterable[Any] = value if isinstance(value, list) else []
    return [(int(pair[0]), int(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2]


def _mark_void(steps: list[Step], *, together: bool) -> None:
    """`together`: one rank that goes back means that all do."""
    last: dict[int, int] = {}
    made: dict[tuple[int, int], int] = {}
    standing: list[Step] = []
    for step in steps:
        key = (step.rank, step.step)
        step.again = made.get(key, 0)
        made[key] = step.again + 1
        if step.step <= last.get(step.rank, 0):
            concerned = set(last) if together and not step.healed else {step.rank}
            for earlier in standing:
                earlier.kept = earlier.rank not in concerned or earlier.step < step.step
            standing = [earlier for earlier in standing if earlier.kept]
            for rank in concerned:
                last[rank] = min(last[rank], step.step - 1)
        last[step.rank] = step.step
        standing.append(step)


def _entries(events: list[Event]) -> list[Entry]:
    entries: dict[tuple[int, str, str], Entry] = {}
    last: dict[int, int] = {}
    just_met: set[int] = set()
    for event in events:
        rank = int(event.get("rank") or 0)
        if event["kind"] == "membership":
            just_met.add(rank)
            continue
        meeting, member = int(event.get("round") or 0), str(event.get("member"))
        if rank in just_met and meeting <= last.get(rank, 0):
            entries = {key: entry for key, entry in entries.items() if entry.round < meeting}
            last = {rank: min(known, meeting - 1) for rank, known in last.items()}
        just_met.discard(rank)
        last[rank] = meeting
        found = _MEMBER.match(member)
        entries[meeting, event["kind"], member] = Entry(
            when(event),
            event["kind"],
            meeting,
            int(found[1]) if found else -1,
            _spans(event.get("ranges")),
        )
    return sorted(entries.values(), key=lambda entry: entry.time)
