"""Whoever stops processes has to continue them, also if it is killed itself: a small process that does it then.

It learns through a pipe which processes are stopped. The pipe ends with the launcher, however that ends; then they are
continued, and notice themselves that their launcher is gone.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

_PROGRAM = """
import os, signal, sys
stopped = set()
for line in sys.stdin:
    (stopped.add if line[0] == "+" else stopped.discard)(int(line[1:]))
for pid in stopped:
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        pass
"""


class Guard:
    """Knows which processes are stopped."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C on the terminal is not meant for it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def note(self, pid: int, *, stopped: bool) -> None:
        """Process `pid` is about to be stopped, or was continued."""
        assert self._process.stdin is not None
        print(f"{'+' if stopped else '-'}{pid}", file=self._process.stdin, flush=True)

    def close(self) -> None:
        """Continue what is still stopped."""
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=10)
