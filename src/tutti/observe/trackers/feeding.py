"""A tracker is fed with what the run's events say, as they come, until the run is over."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tutti.core import RunDirectory
from tutti.observe.figures import compute_figures, finite
from tutti.observe.history import read_history
from tutti.observe.tail import Tail, when
from tutti.observe.trackers.rows import Rows, Start
from tutti.observe.trackers.tracker import Ending, Row, Tracker

_EVERY_SECONDS = 1.0
#: A tracker that failed is tried again after so long, then after twice as long, and so on up to the longest.
_AGAIN_SECONDS, _LONGEST_SECONDS = 30.0, 600.0
_LONGEST_REASON = 300
#: Numbers of a report by which no run is judged.
_NO_FIGURES = ("started", "ended")


class Feed:
    """Feeds the tracker that `make` makes with events of `run` written at or after `since` (Unix seconds).

    It is begun with the first row, so a run that fails before its first step leaves nothing there. `warn` gets a
    sentence when the tracker fails, and is not told again before it has worked. What it did not take is kept for it.
    """

    def __init__(
        self, run: Path, make: Callable[[], Tracker], warn: Callable[[str], None], since: float
    ) -> None:
        self._run, self._make, self._warn, self._since = run, make, warn, since
        self._tail, self._rows = Tail(run), Rows()
        self._waiting: list[Row | Start] = []
        self._tracker: Tracker | None = None
        self._failures = 0

    def go_on(self, over: threading.Event) -> None:
        """Until `over` is set; what is there by then is told as well, and how it ended."""
        again_at = 0.0
        while True:
            last = over.is_set()
            if last or time.monotonic() >= again_at:
                try:
                    self._pass_on()
                    if last and self._tracker is not None:
                        self._tracker.end(ending_of(self._run))
                    self._failures = 0
                except Exception as error:  # whatever a third-party tracker raises is no business of the run
                    self._note(error)
                    again_at = time.monotonic() + self._pause()
            if last:
                return
            over.wait(_EVERY_SECONDS)

    def _pass_on(self) -> None:
        """Everything that is new."""
        while self._next():
            first = self._waiting[0]
            if self._tracker is None:
                self._tracker = self._make()
                if not isinstance(first, Start):
                    self._tracker.begin(None)
            if isinstance(first, Start):
                self._tracker.begin(first.resumed_from)
                del self._waiting[0]
                continue
            rows = list(itertools.takewhile(lambda item: isinstance(item, Row), self._waiting))
            self._tracker.write([row for row in rows if isinstance(row, Row)])
            del self._waiting[: len(rows)]

    def _next(self) -> bool:
        """Whether a row waits to be told. New ones are read when none does: the files are what keeps them."""
        if not any(isinstance(item, Row) for item in self._waiting):
            fresh = (event for event in self._tail.poll() if when(event) >= self._since)
            self._waiting += self._rows.of(fresh)
        return any(isinstance(item, Row) for item in self._waiting)

    def _note(self, error: Exception) -> None:
        self._tracker = None
        self._failures += 1
        if self._failures == 1:
            lines = str(error).strip().splitlines() or [""]
            self._warn(f"{type(error).__name__}: {lines[0][:_LONGEST_REASON]}")

    def _pause(self) -> float:
        return min(_LONGEST_SECONDS, _AGAIN_SECONDS * 2.0 ** (self._failures - 1))


def ending_of(run: Path) -> Ending:
    """How the run at `run` ended, from its events; the files are those of its report, where there is one."""
    place = RunDirectory(run)
    figures = compute_figures(run, read_history(run))
    files = (place.report_markdown, place.report_json, place.curve)
    return Ending(
        str(figures["state"]),
        int(figures["steps"]),
        {
            name: value
            for name, item in figures.items()
            if name not in _NO_FIGURES
            and not isinstance(item, bool | str)
            and (value := finite(item)) is not None
        },
        [file for file in files if file.is_file()],
    )
