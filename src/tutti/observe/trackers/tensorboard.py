"""Curves for TensorBoard, in `tensorboard/` of the run; the configuration and the report as text."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import yaml

from tutti.observe.trackers.tracker import Ending, Row, TrackedRun


class TensorBoardTracker:
    """Writes event files with torch's `SummaryWriter`."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._writer: Any = None

    def begin(self, resumed_from: int | None) -> None:
        # Imported here, in the tracker's thread: it takes a second.
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _Quiet(threading.excepthook)
        if self._writer is not None:
            self._writer.close()
        # A new writer tells TensorBoard to drop the steps that are done again.
        purge = None if resumed_from is None else resumed_from + 1
        self._writer = SummaryWriter(str(self._run.path / "tensorboard"), purge_step=purge)
        said = {**self._run.tags, "configuration": dict(self._run.settings)}
        text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
        self._writer.add_text("configuration", _as_code(text), resumed_from or 0)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.time)
        self._writer.flush()

    def end(self, ending: Ending) -> None:
        for name, value in ending.figures.items():
            self._writer.add_scalar(f"report/{name}", value, ending.step)
        for file in ending.files:
            if file.suffix == ".md":
                self._writer.add_text("report", file.read_text(encoding="utf-8"), ending.step)
        self._writer.close()


def _as_code(text: str) -> str:
    """Indented, which Markdown shows as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


class _Quiet:
    """The library's own thread dies of a full disk with a traceback on the terminal; a warning says it in one line."""

    def __init__(self, before: Any) -> None:
        self._before: Any = before._before if isinstance(before, _Quiet) else before

    def __call__(self, arguments: Any) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            self._before(arguments)
