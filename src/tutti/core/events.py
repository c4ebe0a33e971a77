"""The run's diary: one append-only JSON-lines file per rank; every report only ever reads these.

Each line has at least `time` (Unix seconds), `kind` and `rank`. A line is written by one `os.write`, so a
SIGKILL loses at most the line in flight; a torn last line is skipped by the reader.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _finite(value: Any) -> Any:
    """JSON has no NaN: say it as text, so that every reader can take the file."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class EventWriter:
    """Appends events of one rank to `directory/rank-N.jsonl` (created when missing)."""

    def __init__(self, directory: Path, rank: int, replica: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.rank = rank
        self.replica = replica
        path = directory / f"rank-{rank}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        _end_torn_line(path, self._descriptor)
        self._torn = False

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event; `fields` must be JSON values (non-finite floats become text)."""
        event = {"time": round(time.time(), 4), "kind": kind, "rank": self.rank, "replica": self.replica}
        line = json.dumps(event | _finite(fields), ensure_ascii=False, separators=(",", ":"))
        # A file's name need not be UTF-8, and what failed because of it is to be known.
        content = b"\n" * self._torn + line.encode(errors="replace") + b"\n"
        self._torn = os.write(self._descriptor, content) < len(content)
        if self._torn:  # the disk is full; the next one begins a line of its own
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file; further writes fail."""
        os.close(self._descriptor)


def _end_torn_line(path: Path, descriptor: int) -> None:
    """A predecessor killed in mid-write must not swallow our first line."""
    size = path.stat().st_size
    if size == 0:
        return
    with path.open("rb") as file:
        file.seek(size - 1)
        if file.read(1) != b"\n":
            os.write(descriptor, b"\n")


def read_events(run: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """All events of the run at `run` (its root directory), of one `kind` or all, rank after rank, oldest first."""
    for path in sorted((run / "events").glob("rank-*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:  # torn by a SIGKILL
                    continue
                if kind is None or event.get("kind") == kind:
                    yield event
