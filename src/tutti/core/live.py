"""Signs of life: each worker says every few seconds where it is, so that a hang has a culprit.

A daemon thread overwrites `live/rank-N.json` with the time, the step, the phase and the stack of the thread
that trains. The thread keeps writing while the training thread waits in a collective (torch releases the
interpreter lock there), so a fresh file with an old step means *stuck*, and an old file means *stopped*:
a suspended or dead process, or a machine that is gone. `observe.watch` reads these files.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from linecache import getline
from pathlib import Path
from types import CodeType, FrameType, TracebackType

#: Frames of a stack that are kept: the innermost ones, where the rank is.
FRAMES = 15

#: Phase of a worker that left its work cleanly; nobody waits for it any more.
FINISHED = "finished"

#: Those that this process writes.
_written: list[LiveSign] = []


def beat() -> None:
    """Say that what takes long without a step (validation, writing) gets on; nothing where no worker runs."""
    for sign in _written:
        sign.set()


@contextlib.contextmanager
def waiting_for_others() -> Iterator[None]:
    """Inside, this process waits, in whatever thread, for others who may not come for long; it holds up nobody."""
    for sign in _written:
        sign.waits = True
    try:
        yield
    finally:
        for sign in _written:
            sign.waits = False


class LiveSign:
    """Writes `directory/rank-N.json` every `every_seconds` until `stop`; usable as a context manager. `name`: of the
    file, for a process that is no rank.

    Make it in the thread that trains: that thread's stack is what it samples. Setting `step` or entering
    a `phase` costs an attribute; the file is written by the other thread.
    """

    def __init__(
        self, directory: Path, rank: int, *, name: str | None = None, every_seconds: float = 2.0
    ) -> None:
        self.rank = rank
        self._path = directory / f"{name or f'rank-{rank}'}.json"
        self._every_seconds = every_seconds
        self._watched = threading.get_ident()
        self._step = 0
        self._phase = "starting"
        self._since = time.time()
        self.waits = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-sign", daemon=True)

    def start(self) -> LiveSign:
        """Write the first sign now and keep writing in the background."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()
        _written.append(self)
        return self

    def stop(self) -> None:
        """Say that this rank has finished, and end the thread."""
        if self in _written:
            _written.remove(self)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self.set(phase=FINISHED)
        self._write()

    def __enter__(self) -> LiveSign:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def set(self, *, step: int | None = None, phase: str | None = None) -> None:
        """Say that the worker is now at `step` (last one finished) and in `phase` (`data`, `compute`, …), or, with
        neither, that it gets on."""
        if step is not None:
            self._step = step
        if phase is not None:
            self._phase = phase
        self._since = time.time()

    @property
    def step(self) -> int:
        """The last step that this rank said it had finished."""
        return self._step

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The worker is in phase `name` inside the block, and in the earlier one again after it.

        An exception keeps `name`: the last sign then says where it happened.
        """
        before = self._phase
        self.set(phase=name)
        yield
        self.set(phase=before)

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self._write()

    def _write(self) -> None:
        stack: list[str] = []
        with contextlib.suppress(Exception):  # of whoever sees no stack the time still says that he is alive
            stack = stack_of(sys._current_frames().get(self._watched))
        sign = {
            "time": round(time.time(), 3),
            "pid": os.getpid(),
            "rank": self.rank,
            "step": self._step,
            "phase": self._phase,
            "since": round(self._since, 3),
            "waits": self.waits,
            "stack": stack,
        }
        beside = self._path.with_name(f".{self._path.name}.tmp")
        # No fsync: a sign that a power cut loses is of no use anyway. A full disk must not end the run here.
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(sign, ensure_ascii=False), encoding="utf-8")
            beside.replace(self._path)


def stack_of(frame: FrameType | None) -> list[str]:
    """The innermost frames of a running thread, as `file:line function: source`, the innermost last."""
    # All of them at once, before any file is read: meanwhile the thread would go on, and its frames would be gone, or
    # be something else (CPython 3.11: "'dict' object has no attribute 'f_lineno'").
    places: list[tuple[CodeType, int]] = []
    while frame is not None and len(places) < FRAMES:
        places.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return [
        f"{_short(code.co_filename)}:{line} {code.co_name}: {getline(code.co_filename, line).strip()}".rstrip(
            ": "
        )
        for code, line in reversed(places)
    ]


def _short(filename: str) -> str:
    """The last three parts of a path: enough to find the file, and nothing of somebody's home directory."""
    return "/".join(Path(filename).parts[-3:])


def clear_signs(directory: Path) -> None:
    """Forget the signs of an earlier attempt; the launcher calls this before it starts workers again."""
    for path in directory.glob("rank-*.json"):
        path.unlink(missing_ok=True)
