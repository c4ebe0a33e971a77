"""Curves for TensorBoard, written by a thread of the launcher that only reads events.

The workers know nothing of it, so a tracker that fails or hangs cannot hold up or end a run: it costs one
warning.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutti.observe.starts import made_together, restarted_alone
from tutti.observe.tail import Event, Tail, number, when

_EVERY_SECONDS = 1.0

#: event → its fields → the names of their curves
_CURVES = {
    "step": {
        "loss": "loss/train",
        "learning_rate": "optimizer/learning_rate",
        "gradient_norm": "optimizer/gradient_norm",
        "seconds": "time/step_seconds",
        "wait_data_seconds": "time/wait_data_seconds",
        "sync_seconds": "time/sync_seconds",
        "bytes_sent": "network/bytes_sent",
    },
    "validation": {"loss": "loss/validation", "bits_per_byte": "loss/validation_bits_per_byte"},
    "checkpoint": {
        "blocked_seconds": "checkpoint/blocked_seconds",
        "write_seconds": "checkpoint/write_seconds",
    },
}


class TensorBoardTracker:
    """Writes `run/tensorboard/` from the run's events; `warn` gets one sentence if that fails.

    Events older than `since` (Unix seconds; default: now) were written by an earlier command's tracker.
    `writer` makes the thing with `add_scalar(name, value, step, walltime)`, `flush` and `close`.
    """

    def __init__(
        self,
        run: Path,
        warn: Callable[[str], None],
        *,
        since: float | None = None,
        writer: Callable[[str, int | None], Any] | None = None,
    ) -> None:
        self._directory = run / "tensorboard"
        self._tail = Tail(run)
        self._warn = warn
        self._since = time.time() if since is None else since
        self._make_writer = writer or _summary_writer
        self._writer: Any = None
        self._together = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)

    def start(self) -> TensorBoardTracker:
        """Begin to read and write in the background."""
        self._thread.start()
        return self

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Write what is left, but wait no longer than `timeout_seconds` for it."""
        self._stop.set()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._warn(f"TensorBoard's writer hangs in {self._directory}; its curves may be incomplete")

    def _run(self) -> None:
        try:
            while True:
                last = self._stop.is_set()
                for event in self._tail.poll():
                    if when(event) >= self._since:
                        self._write(event)
                if self._writer is not None:
                    self._writer.flush()
                if last:
                    break
                self._stop.wait(_EVERY_SECONDS)
            if self._writer is not None:
                self._writer.close()
        except (
            Exception
        ) as error:  # a third-party tracker may raise anything; none of it is the run's business
            self._warn(f"TensorBoard's curves end here ({type(error).__name__}: {error}); the run goes on")

    def _write(self, event: Event) -> None:
        kind, time_written = event["kind"], when(event)
        if kind == "run_started":
            self._together = made_together(event)
            if not event.get("rank") and not restarted_alone(event):  # else no step is done again
                self._begin(int(event.get("resumed_from") or 0))
        leads = kind != "step" or number(event.get("loss")) is not None
        for field, name in _CURVES.get(kind, {}).items() if leads else ():
            value = number(event.get(field))
            if value is not None:
                self._begin()
                rank = None if self._together and kind == "step" else event.get("rank")
                name = name if not rank or rank == -1 else f"{name}/rank-{rank}"
                self._writer.add_scalar(name, value, int(event.get("step") or 0), walltime=time_written)
        tokens, seconds = number(event.get("tokens")), number(event.get("seconds"))
        if kind == "step" and leads and (self._together or not event.get("rank")) and tokens and seconds:
            self._writer.add_scalar(
                "time/tokens_per_second", tokens / seconds, int(event.get("step") or 0), walltime=time_written
            )

    def _begin(self, resumed_from: int | None = None) -> None:
        """Open a writer; after a restart a new one that tells TensorBoard to drop the steps done again."""
        if resumed_from is None and self._writer is not None:
            return
        if self._writer is not None:
            self._writer.close()
        self._writer = self._make_writer(
            str(self._directory), None if resumed_from is None else resumed_from + 1
        )


def _summary_writer(directory: str, purge_step: int | None) -> Any:
    # Imported here, in the tracker's thread: it takes a second, and may not be installed.
    from torch.utils.tensorboard import SummaryWriter

    threading.excepthook = _Quiet(threading.excepthook)
    return SummaryWriter(directory, purge_step=purge_step)


class _Quiet:
    """The library's own thread dies of a full disk with a traceback on the terminal; `_run` says it in one line."""

    def __init__(self, before: Any) -> None:
        self._before: Any = before._before if isinstance(before, _Quiet) else before

    def __call__(self, arguments: Any) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            self._before(arguments)
