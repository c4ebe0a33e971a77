"""Reads the event files while they grow: only what is new, never a line that is still being written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Tail:
    """`poll()` gives the events that were written since the last call, by all ranks, ordered by time."""

    def __init__(self, run: Path) -> None:
        self._directory = run / "events"
        self._offsets: dict[Path, int] = {}
        self._files: dict[Path, int] = {}

    def poll(self) -> list[Event]:
        """New events; cheap when nothing is new (one `stat` per rank)."""
        events: list[Event] = []
        for path in sorted(self._directory.glob("rank-*.jsonl")):
            events += self._read(path)
        # Stable: events of one rank keep their order even if its clock was set back within a tick.
        return sorted(events, key=when)

    def replaced(self) -> bool:
        """Whether a file that was read is another one now: the run was deleted, and begun again."""
        for path, number_of_file in self._files.items():
            try:
                now = path.stat()
            except OSError:
                return True
            if now.st_ino != number_of_file or now.st_size < self._offsets.get(path, 0):
                return True
        return False

    def _read(self, path: Path) -> list[Event]:
        offset = self._offsets.get(path, 0)
        try:
            if path.stat().st_size <= offset:
                return []
            with path.open("rb") as file:
                self._files.setdefault(path, os.fstat(file.fileno()).st_ino)
                file.seek(offset)
                fresh = file.read()
        except OSError:
            return []
        whole = fresh.rfind(b"\n") + 1  # the rest is a line in flight
        self._offsets[path] = offset + whole
        return [event for line in fresh[:whole].splitlines() if (event := parse(line)) is not None]


def parse(line: bytes) -> Event | None:
    """The event on one line, or None when a SIGKILL tore it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None


def when(event: Event) -> float:
    """Unix seconds at which the event was written (0 when it does not say)."""
    return number(event.get("time")) or 0.0


def of_a_tracker(event: Event) -> bool:
    """Whether it is about a tracker, which may have ended after the run: nothing of the run happened then."""
    return event["kind"] == "warning" and "tracker" in event


def number(value: Any) -> float | None:
    """A field as a float; `nan` and `inf` come as text in events and stay what they are. None: no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
