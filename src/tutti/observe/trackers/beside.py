"""Where trackers live: beside the run, each for itself, so that what becomes of one is nobody else's business.

TensorBoard only writes a file, in a thread of the launcher. Libraries that bring threads, processes and a network of
their own get a process, of low priority, which outlives nothing: it ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from tutti.core import ConfigError, RunDirectory
from tutti.observe.trackers.feeding import Feed
from tutti.observe.trackers.introduce import introduce
from tutti.observe.trackers.tensorboard import TensorBoardTracker

#: How long trackers may take for what is left when the run is over.
END_SECONDS = 30.0

#: tracker → the modules that it needs
_NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError unless everything that these trackers need is installed."""
    for name in names:
        if missing := [module for module in _NEEDS[name] if importlib.util.find_spec(module) is None]:
            raise ConfigError(
                f"trackers: {name} needs {' and '.join(missing)}, which is not installed",
                f"pip install 'tutti[{name}]', or leave {name} out",
            )


class Trackers:
    """The trackers `names` beside the run at `run`, fed with what is written at or after `since` (Unix seconds).

    `warn(name, message)` is told what goes wrong with one; nothing here raises.
    """

    def __init__(
        self, run: Path, names: Sequence[str], warn: Callable[[str, str], None], since: float
    ) -> None:
        def host(name: str) -> _Host:
            def tell(message: str) -> None:
                warn(name, message)

            return (_InThread if name == "tensorboard" else _InProcess)(run.absolute(), name, tell, since)

        self._hosts = [host(name) for name in names]

    def end(self, timeout_seconds: float = END_SECONDS) -> None:
        """Have them take what is left, and end; wait no longer than so for all of them together."""
        deadline = time.monotonic() + timeout_seconds
        for host in self._hosts:
            host.say_over()
        for host in self._hosts:
            host.end(
                deadline,
                f"was not done {timeout_seconds:.0f} s after the run's end; what it has may end early",
            )


class _Host(Protocol):
    """Something that a tracker lives in; it begins at once."""

    def __init__(self, run: Path, name: str, warn: Callable[[str], None], since: float) -> None: ...

    def say_over(self) -> None:
        """The run is over: take what is left, and end."""
        ...

    def end(self, deadline: float, late: str) -> None:
        """Wait until then (`time.monotonic()`); who is not done is given up, and a warning says that he was `late`."""
        ...


class _InThread:
    def __init__(self, run: Path, name: str, warn: Callable[[str], None], since: float) -> None:
        self._warn = warn
        self._over = threading.Event()
        feed = Feed(run, lambda: TensorBoardTracker(introduce(run)), warn, since)
        self._thread = threading.Thread(target=feed.go_on, args=(self._over,), name=name, daemon=True)
        self._thread.start()

    def say_over(self) -> None:
        self._over.set()

    def end(self, deadline: float, late: str) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(late)


class _InProcess:
    def __init__(self, run: Path, name: str, warn: Callable[[str], None], since: float) -> None:
        self._warn = warn
        self._log = RunDirectory(run).logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._given_up = False
        words = [sys.executable, "-P", "-m", "tutti.observe.trackers", name, str(run), str(since)]
        try:
            self._process = self._start(words)
        except OSError as error:
            warn(f"its process cannot be started: {error.strerror or error}")
            return
        self._thread = threading.Thread(target=self._listen, args=(self._process,), name=name, daemon=True)
        self._thread.start()

    def _start(self, words: list[str]) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(place for place in sys.path if place)
        with contextlib.ExitStack() as stack:
            log: int | object = subprocess.DEVNULL
            with contextlib.suppress(OSError):  # a full disk, for example
                log = stack.enter_context(self._log.open("ab"))
            # A session of its own: Ctrl-C is for the run, and what a library starts can be ended with it.
            return subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,  # type: ignore[arg-type]
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._warn(line.decode(errors="replace").strip())
        code = process.wait()
        if code != 0 and not self._given_up:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            self._warn(f"its process {how}; see {self._log}")

    def say_over(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self, deadline: float, late: str) -> None:
        if self._process is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._given_up = True
            _kill(self._process.pid)
            self._thread.join(1.0)
            self._warn(late)


def _kill(pid: int) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
