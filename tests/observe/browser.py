"""Debian's Chromium, or Playwright's own; where there is neither, its tests are skipped, unless it has to be there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        program = shutil.which("chromium")
        if program is None and not Path(playwright.chromium.executable_path).is_file():
            assert "TUTTI_NEEDS_BROWSER" not in os.environ, "there is no Chromium: apt-get install chromium"
            pytest.skip("there is no Chromium: apt-get install chromium")
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Dashboard:
    """`tutti dashboard` as a process, which may be killed and started again at the same address."""

    def __init__(self, *words: str) -> None:
        self._words, self.port = words, free_port()
        self.url = f"http://localhost:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tutti", "dashboard", *self._words, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert "dashboard at" in self._process.stdout.readline()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """As a user does."""
        assert self._process is not None
        self._process.terminate()
        self._process.communicate(timeout=50)  # of the sixty that a server may take for what never ends
        assert self._process.returncode == 0
