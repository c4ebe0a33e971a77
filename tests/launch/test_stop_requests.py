"""A request to stop, and the same one heard twice."""

from __future__ import annotations

import os
import signal
import time

from tutti.launch.signals import stop_requests


def test_signals_at_the_same_moment_are_one_request() -> None:
    """`timeout` signals its child and then the child's whole group; only a second request would kill."""
    asked: list[float] = []
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests(lambda: asked.append(time.monotonic())):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert len(asked) == 1
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert len(asked) == 2
    assert signal.getsignal(signal.SIGTERM) is before
