"""A tracker in a process of its own: `python -m tutti.observe.trackers NAME RUN SINCE`.

Its standard input ends when the run is over, or whoever started it is dead. A line on its standard output is a warning.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tutti.observe.trackers.beside import END_SECONDS
from tutti.observe.trackers.feeding import Feed
from tutti.observe.trackers.introduce import introduce
from tutti.observe.trackers.tracker import TrackedRun, Tracker

_PRIORITY = 10
#: Unless the user says otherwise. A server that is away is asked again by `Feed`, not for minutes by MLflow.
_SURROUNDINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}


def main(name: str, run: Path, since: float) -> None:
    """Feed the tracker `name` until the run at `run` is over."""
    for variable, value in _SURROUNDINGS.items():
        os.environ.setdefault(variable, value)
    os.nice(_PRIORITY)  # what the workers leave of the cores is enough
    said = os.dup(1)
    os.dup2(2, 1)  # what libraries print belongs in the log
    over = threading.Event()
    threading.Thread(target=_wait, args=(over,), daemon=True).start()

    def warn(message: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(said, f"{' '.join(message.split())}\n".encode())

    with contextlib.suppress(
        Exception
    ):  # it takes seconds, before there is anything to tell; `Feed` says what is wrong
        _kind(name)
    Feed(run, lambda: _kind(name)(introduce(run)), warn, since).go_on(over)


def _kind(name: str) -> Callable[[TrackedRun], Tracker]:
    """Imported late: each needs a library that may not be there."""
    if name == "mlflow":
        from tutti.observe.trackers.mlflow import MLflowTracker

        return MLflowTracker
    from tutti.observe.trackers.wandb import WandbTracker

    return WandbTracker


def _wait(over: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    over.set()
    # Whoever would end a tracker that hangs may be dead.
    late = threading.Timer(2 * END_SECONDS, os._exit, (1,))
    late.daemon = True
    late.start()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
