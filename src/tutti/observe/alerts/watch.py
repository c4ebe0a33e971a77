"""Looks at runs and services every few seconds, and has receivers told what is wrong.

Of one run one process tells: it holds a lock on the run's `alerts.jsonl`. The launcher does so while it lives; a
`tutti alerts watch` beside it waits, and takes over when the launcher is gone, which is how a dead run is told of.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tutti.core import RunDirectory
from tutti.observe.alerts.findings import Alert, Book
from tutti.observe.alerts.run_rules import RunRules, judge_run
from tutti.observe.alerts.sender import Sender
from tutti.observe.alerts.service_rules import ServiceRules, judge_service
from tutti.observe.growing import GrowingHistory
from tutti.observe.metrics import Sample

_EVERY_SECONDS = 5.0
#: For the last look, which may have to read a long history again.
_LAST_LOOK_SECONDS = 60.0


class Watched(Protocol):
    """Something that alerts are about."""

    def look(self, now: float, *, last: bool) -> list[Alert]:
        """What is to be told. `last`: there will be no other look."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class WatchedRun:
    """The run at `run`; told of by whoever holds its `alerts.jsonl`."""

    def __init__(self, run: Path, rules: RunRules, repeat_seconds: float) -> None:
        self._run, self._rules, self._repeat = run, rules, repeat_seconds
        self._file = run / "alerts.jsonl"
        self._growing = GrowingHistory(run)
        self._descriptor: int | None = None
        self._book: Book | None = None
        #: Why the launcher has given the run up; on a full disk no event says so.
        self.gave_up: str | None = None

    def look(self, now: float, *, last: bool) -> list[Alert]:
        if self._replaced():
            self.close()
        if self._book is None and not self._take_over():
            return []
        assert self._book is not None
        self._growing.refresh(at_once=last)
        found = judge_run(self._run, self._growing.history, self._rules, now, last=last, gave_up=self.gave_up)
        return self._book.compare(found, now)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = self._book = None

    def _replaced(self) -> bool:
        """Whether what is held is the file of a run that was deleted. It may have begun again, with another to tell."""
        if self._descriptor is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except FileNotFoundError:
            return True

    def _take_over(self) -> bool:
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except FileNotFoundError:
            return False  # there is no run now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            pass  # some network file systems have no locks
        self._descriptor = descriptor
        self._book = Book(RunDirectory(self._run).title, self._repeat, self._file)
        return True


class WatchedService:
    """A service called `name`. `samples`: what it said lately."""

    def __init__(
        self, name: str, samples: Callable[[], Sequence[Sample]], rules: ServiceRules, repeat_seconds: float
    ) -> None:
        self._samples, self._rules = samples, rules
        self._book = Book(name, repeat_seconds)

    def look(self, now: float, *, last: bool) -> list[Alert]:
        return self._book.compare(judge_service(self._samples(), self._rules), now)

    def close(self) -> None:
        """There is nothing to let go of."""


class Watch:
    """A thread that looks at `watched`. It never raises: what goes wrong is said once, to `warn`."""

    def __init__(
        self,
        watched: Sequence[Watched],
        sender: Sender,
        warn: Callable[[str], None],
        *,
        every_seconds: float = _EVERY_SECONDS,
        tell: Callable[[Alert], None] = lambda alert: None,
    ) -> None:
        self._watched, self._sender, self._warn = watched, sender, warn
        self._every_seconds, self._tell = every_seconds, tell
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch for alerts", daemon=True)

    def start(self) -> Watch:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Look once more, and end when what was found is delivered or cannot be."""
        self._stop.set()
        self._thread.join(timeout=_LAST_LOOK_SECONDS)
        self._sender.stop()
        for one in self._watched:
            with suppress(OSError):
                one.close()

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            for one in self._watched:
                try:
                    alerts = one.look(time.time(), last=last)
                except Exception as error:  # whatever a file may hold is no business of the run
                    if not self._warned:
                        self._warn(f"alerts: {type(error).__name__}: {error}")
                    self._warned = True
                    continue
                for alert in alerts:
                    self._tell(alert)
                    self._sender.send(alert)
            if last:
                return
            self._stop.wait(self._every_seconds)
