"""What goes on beside the workers: their events are shown and tracked, and who hangs is named."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from tutti import __version__
from tutti.config import AlertsConfig, Config
from tutti.core.events import EventWriter
from tutti.core.provenance import source_commit
from tutti.core.rundir import RunDirectory
from tutti.launch.local import LAUNCHER_RANK
from tutti.observe import Trackers, Watchdog, follow
from tutti.observe.alerts import RunRules, Sender, Watch, WatchedRun, receivers_of


class Show:
    """Console and alerts while a run goes on; both only read its events.

    `label`: what every line begins with, where several runs share the terminal. `alerts`: of the run's configuration;
    None: somebody else sees to them.
    """

    def __init__(
        self,
        run: RunDirectory,
        console: bool,
        since: float,
        label: str = "",
        alerts: AlertsConfig | None = None,
    ) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=follow,
            args=(run.path, self._stop),
            kwargs={
                "interactive": sys.stdout.isatty() and not label,
                "since": since,
                "console": Console(
                    file=_Labelled(label), highlight=False, soft_wrap=True, force_jupyter=False
                )
                if label
                else None,
            },
            daemon=True,
            name="console",
        )
        self._console = console
        self._watched: WatchedRun | None = None
        self._watch: Watch | None = None
        if alerts is not None and alerts.has_receivers:
            self._watched, self._watch = _alerts(run, alerts)

    def __enter__(self) -> Show:
        if self._watch is not None:
            self._watch.start()
        if self._console:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def give_up(self, reason: str) -> None:
        """Whoever is told of alerts is to know that the run failed, also if no event of that can be written."""
        if self._watched is not None:
            self._watched.gave_up = reason

    def stop(self) -> None:
        """Show what is left, and end."""
        self._stop.set()
        if self._console:
            self._thread.join(timeout=10)
        if self._watch is not None:
            self._watch.stop()
            self._watch = None


@contextmanager
def tracked(run: RunDirectory, names: Sequence[str], since: float, label: str = "") -> Iterator[Trackers]:
    """Inside, the trackers `names` are told of the run; they have seen its report when it is written inside as well.

    What goes wrong with one is a `warning` among the run's events, and a line on the standard error.
    """

    def warn(tracker: str, message: str) -> None:
        message = f"{tracker}: {message}"
        print(f"{label}warning: {message}", file=sys.stderr, flush=True)
        with suppress(OSError):  # the disk is full, or the run failed so early that nothing is left of it
            if run.events.is_dir():
                events = EventWriter(run.events, LAUNCHER_RANK)
                events.write("warning", tracker=tracker, message=message)
                events.close()

    trackers = Trackers(run.path, names, warn, since)
    try:
        yield trackers
    finally:
        trackers.end()


def say_launched(events: EventWriter, resume: bool) -> None:
    """The first event of a command: wall time counts from here."""
    events.write("launched", resume=resume, version=__version__, commit=source_commit())


def _alerts(run: RunDirectory, alerts: AlertsConfig) -> tuple[WatchedRun, Watch]:
    section = alerts.model_dump()

    def warn(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    watched = WatchedRun(run.path, RunRules.of(section), alerts.repeat_minutes * 60.0)
    return watched, Watch([watched], Sender(receivers_of(section), warn), warn)


class _Labelled(io.StringIO):
    """The terminal, with a label before every line; a line is written whole, so that several may write."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            sys.stdout.write("".join(f"{self._label}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def stall_check(
    run: RunDirectory, config: Config, events: EventWriter, kill: Callable[[int], None]
) -> Callable[[], None]:
    """What to call every second or so: it notes who hangs, and ends who has hung for too long."""
    watchdog = Watchdog(
        run.path,
        config.watch.stall_seconds,
        lambda event: events.write(
            "stalled" if event["kind"] == "stalled" else "recovered", **_fields(event)
        ),
    )

    def look() -> None:
        watchdog.poll()
        for stall in watchdog.stalls.values():
            limit = config.watch.kill_after_seconds * stall.patience
            if stall.seconds > limit and stall.pid is not None:
                kill(stall.pid)

    return look


def _fields(event: dict[str, Any]) -> dict[str, Any]:
    """An observer's event without what the writer adds; the rank that it is about becomes `of_rank`."""
    return {
        ("of_rank" if key == "rank" else key): value
        for key, value in event.items()
        if key not in ("kind", "time")
    }
