"""Requests to stop: SIGTERM and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

#: `timeout` and some supervisors send a signal to a program and, with its group, once more: that is one request.
_ONE_REQUEST_SECONDS = 0.5


@contextlib.contextmanager
def stop_requests(action: Callable[[], None]) -> Iterator[None]:
    """Inside, `action` is called for each of them. Only the main thread can hear them; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -_ONE_REQUEST_SECONDS

    def on_signal(_number: int, _frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _ONE_REQUEST_SECONDS:
            last = now
            action()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
