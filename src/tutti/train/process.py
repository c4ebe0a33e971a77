"""The worker as a process: its output, its signals, its launcher, and how it says what went wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tutti.core.errors import TrainingError, TuttiError
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.sync import PeerLost, StateLost


def redirect_output(path: Path) -> None:
    """What a worker prints goes to its own file, not among N others on the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def die_with(launcher: int) -> None:
    """Leave when the launcher is gone: a worker without one can be neither watched nor restarted."""

    parent = os.getppid()  # the server that this worker was forked from; without it nobody learns how we end

    def watch() -> None:
        while os.getppid() == parent:
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                break
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


class StopRequest:
    """SIGTERM and Ctrl-C ask for a stop after the current step; before the first step there is nothing to save."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self.asked = True
        if not self.training:
            os._exit(128 + number)


#: Words of gloo, NCCL and the store when the other side is gone.
_PEER_WORDS = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "socket",
    "gloo",
)


def is_peer_error(error: BaseException) -> bool:
    """Whether `error` only says that somebody else is gone."""
    if isinstance(error, PeerLost | StateLost | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PEER_WORDS)


def report_error(error: BaseException, events: EventWriter, live: LiveSign, *, log: bool) -> None:
    """The error into the events, its traceback also into this rank's log; to be called while it is handled."""
    if log:
        traceback.print_exc()
    events.write(
        "error",
        step=live.step,
        type=type(error).__name__,
        message=error.problem if isinstance(error, TuttiError) else str(error),
        hint=error.hint if isinstance(error, TuttiError) else "",
        traceback=traceback.format_exc(),
        peer=is_peer_error(error),
        here=not isinstance(error, TrainingError) or error.here,
        user=isinstance(error, TuttiError),
    )
