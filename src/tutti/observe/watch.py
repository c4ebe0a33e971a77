"""Names the rank that hangs, within `stall_seconds`, instead of letting everybody wait without a culprit.

Two ways to hang, told apart by the signs of life in `live/`:

- *silent*: the file of a rank is not written any more. Its process is stopped or its machine is gone; the
  others wait for it, so they are not named.
- *stuck*: every file is fresh, but no step was finished for long. The ranks that are furthest behind are
  named; among equals those that are not waiting in a collective, for the others wait for them. Replicas that
  wait to meet others (`sync.min_replicas`) are not stuck, however long that takes.

Only this process's own clock is used: a rank's sign is fresh if it *changed*, so clocks of other machines may
be wrong. Time in which this process itself was suspended does not count.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory
from tutti.core.live import FINISHED
from tutti.observe import words
from tutti.observe.tail import Event

#: Phases that may take long without finishing a step; they get `_PATIENCE` times as long, until they are named and
#: until they are ended.
_SLOW_WORDS = (
    *("start", "load", "compil", "rehears", "valid", "evaluat", "sav", "checkpoint", "resum", "heal"),
    *("export", "sampl", "prepar", "generat", "build", "finishing"),
)
_PATIENCE = 10.0

#: Where ranks wait for others; a parameter server and its replicas wait for each other.
_COLLECTIVE = (
    *("torch/distributed/", "distributed_c10d", "all_reduce", "barrier", "_functional_collectives"),
    *("sync/server/link.py", "sync/server/host.py"),
)


@dataclass(frozen=True)
class Stall:
    """A rank that hangs. `how`: `silent` or `stuck`; `seconds`: how long it was not heard or did not move; `patience`:
    so many times as long as others it may do so before it is ended."""

    rank: int
    how: str
    seconds: float
    last_step: int
    phase: str
    stack: tuple[str, ...]
    pid: int | None
    patience: float = 1.0

    @property
    def message(self) -> str:
        """One sentence for people."""
        did = "has given no sign of life" if self.how == "silent" else "has not finished a step"
        at = f"; it was at {self.stack[-1]}" if self.stack else ""
        return (
            f"rank {self.rank} {did} for {words.seconds(self.seconds)} "
            f"(last step {self.last_step}, phase {self.phase}{at})"
        )

    def event(self) -> Event:
        """Fields of the event `stalled`."""
        return {
            "kind": "stalled",
            "rank": self.rank,
            "how": self.how,
            "silent_seconds": round(self.seconds, 1),
            "last_step": self.last_step,
            "phase": self.phase,
            "stack": list(self.stack),
            "pid": self.pid,
            "message": self.message,
        }


@dataclass
class _Seen:
    """What is remembered of a rank: its last sign, and when (our clock) the sign was new and the rank got on."""

    sign: Mapping[str, Any]
    heard: float
    moved: float


class StallDetector:
    """The judgement, without files and clocks: `observe(signs, now)` → the ranks that hang now."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._seen: dict[int, _Seen] = {}
        self._step_seconds: deque[float] = deque(maxlen=50)
        self._clock = 0.0
        self._last_now: float | None = None

    def forget(self) -> None:
        """The workers are being started again: nothing that was seen counts."""
        self._seen.clear()

    def observe(self, signs: Mapping[int, Mapping[str, Any]], now: float) -> list[Stall]:
        """Judge `signs` (rank → content of its live file) at `now`, seconds of any steady clock."""
        # A long gap means that we ourselves were stopped: then the others' silence proves nothing.
        passed = min(now - self._last_now, self._stall_seconds / 3) if self._last_now is not None else 0.0
        self._clock += passed
        self._last_now = now
        for rank in [rank for rank in self._seen if rank not in signs]:
            del self._seen[rank]
        returned = [self._note(rank, sign) for rank, sign in signs.items()]
        if any(returned):  # all waited for it, and may now take their time again
            for seen in self._seen.values():
                seen.moved = self._clock
        for seen in self._seen.values():
            if seen.sign.get("waits"):
                seen.moved = min(seen.moved + passed, self._clock)
        working = {rank: seen for rank, seen in self._seen.items() if not _is_idle(seen.sign)}
        silent = {r: s for r, s in working.items() if self._clock - s.heard > self._stall_seconds}
        if silent:
            return [self._stall(rank, "silent", seen.heard) for rank, seen in sorted(silent.items())]
        if any(self._clock - seen.heard > self._stall_seconds / 3 for seen in working.values()):
            return []  # perhaps silent: its step is older than its sign, but *stuck* would be the wrong word
        return self._stuck({rank: seen for rank, seen in working.items() if not seen.sign.get("waits")})

    def _note(self, rank: int, sign: Mapping[str, Any]) -> bool:
        """Remember the sign; True when the rank is back after a silence."""
        seen = self._seen.get(rank)
        if seen is None or seen.sign.get("pid") != sign.get("pid"):
            self._seen[rank] = _Seen(sign, self._clock, self._clock)
            return False
        returned = False
        if sign.get("time") != seen.sign.get("time"):
            returned = self._clock - seen.heard > self._stall_seconds
            seen.heard = self._clock
        advanced = _step(sign) - _step(seen.sign)
        slow, was_slow = _is_slow(sign), _is_slow(seen.sign)
        beaten = slow and any(sign.get(key) != seen.sign.get(key) for key in ("phase", "since"))
        if advanced or slow != was_slow or beaten:
            if advanced > 0 and not slow and not was_slow:
                self._step_seconds.append((self._clock - seen.moved) / advanced)
            seen.moved = self._clock
        seen.sign = sign
        return returned

    def _stuck(self, working: Mapping[int, _Seen]) -> list[Stall]:
        """All ranks are alive: who holds the others up?"""
        typical = statistics.median(self._step_seconds) if self._step_seconds else 0.0
        limit = max(self._stall_seconds, 10 * typical)

        def patience(seen: _Seen) -> float:
            return limit * _PATIENCE if _is_slow(seen.sign) else limit

        overdue = {rank: seen for rank, seen in working.items() if self._clock - seen.moved > patience(seen)}
        elsewhere = {rank: seen for rank, seen in overdue.items() if not _in_collective(seen.sign)}
        if len(overdue) < len(working):
            # Some still move: another replica, or a rank in a slow phase that the others rightly wait for.
            culprits = elsewhere
        else:
            lowest = min((_step(seen.sign) for seen in overdue.values()), default=0)
            behind = {rank: seen for rank, seen in overdue.items() if _step(seen.sign) == lowest}
            culprits = {rank: seen for rank, seen in behind.items() if rank in elsewhere} or behind
        return [self._stall(rank, "stuck", seen.moved) for rank, seen in sorted(culprits.items())]

    def _stall(self, rank: int, how: str, since: float) -> Stall:
        sign = self._seen[rank].sign
        stack, pid = sign.get("stack"), sign.get("pid")
        return Stall(
            rank=rank,
            how=how,
            seconds=self._clock - since,
            last_step=_step(sign),
            phase=str(sign.get("phase", "?")),
            stack=tuple(map(str, stack)) if isinstance(stack, list) else (),
            pid=pid if isinstance(pid, int) else None,
            patience=_PATIENCE if how == "stuck" and _is_slow(sign) else 1.0,
        )


def _step(sign: Mapping[str, Any]) -> int:
    step = sign.get("step")
    return step if isinstance(step, int) else 0


def _is_idle(sign: Mapping[str, Any]) -> bool:
    """Done, or waiting for others who may never come: nobody waits for it."""
    phase = str(sign.get("phase", ""))
    return phase == FINISHED or phase.startswith("waiting for the other")


def _is_slow(sign: Mapping[str, Any]) -> bool:
    phase = str(sign.get("phase", "")).lower()
    return phase.startswith(_SLOW_WORDS)


def _in_collective(sign: Mapping[str, Any]) -> bool:
    stack = sign.get("stack")
    innermost = " ".join(map(str, stack[-3:])) if isinstance(stack, list) else ""
    return sign.get("phase") == "sync" or any(word in innermost for word in _COLLECTIVE)


def read_signs(run: Path) -> dict[int, dict[str, Any]]:
    """Rank → content of its live file; files that cannot be read are left out."""
    signs: dict[int, dict[str, Any]] = {}
    for path in RunDirectory(run).live.glob("rank-*.json"):
        try:
            sign = json.loads(path.read_text(encoding="utf-8"))
            signs[int(sign["rank"])] = sign
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return signs


class Watchdog:
    """Reads the signs of life of `run` and reports changes: call `poll()`, or `start()` a thread that does.

    `tell` gets the event `stalled` (see `Stall.event`) once for each rank that begins to hang and `recovered`
    (rank, stalled_seconds, message) when it goes on; `stalls` says who hangs now, and for how long.
    """

    def __init__(
        self,
        run: Path,
        stall_seconds: float,
        tell: Callable[[Event], None],
        *,
        every_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._detector = StallDetector(stall_seconds)
        self._tell = tell
        self._every_seconds = min(every_seconds, stall_seconds / 4)
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.stalls: dict[int, Stall] = {}

    def poll(self) -> list[Event]:
        """Look once; returns (and tells) the events of what changed."""
        with self._lock:
            now = {
                stall.rank: stall for stall in self._detector.observe(read_signs(self._run), self._clock())
            }
            events = [stall.event() for rank, stall in now.items() if rank not in self.stalls]
            for rank in [rank for rank in self.stalls if rank not in now]:
                lasted = self.stalls[rank].seconds
                message = f"rank {rank} goes on after {words.seconds(lasted)}"
                events.append(
                    {
                        "kind": "recovered",
                        "rank": rank,
                        "stalled_seconds": round(lasted, 1),
                        "message": message,
                    }
                )
            self.stalls = now
        for event in events:
            self._tell(event)
        return events

    def forget(self) -> None:
        """Start afresh, without `recovered` events: the workers were ended and are started again."""
        with self._lock:
            self._detector.forget()
            self.stalls = {}

    def start(self) -> Watchdog:
        """Poll in a daemon thread until `stop`."""
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self.poll()
