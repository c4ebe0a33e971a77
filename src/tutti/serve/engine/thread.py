"""A thread that has a model to itself: what is asked comes in at one gate, and nobody is forgotten when it ends.

Where it breaks, everybody who was taken on is told, and after a pause it begins again with nothing: what broke it may
have been one request.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

Asked = TypeVar("Asked")

_LOG = logging.getLogger(__name__)
#: How long the thread sleeps when there is nothing to do; whoever asks wakes it.
_IDLE_SECONDS = 0.2
#: An engine that has not come round for so long is wedged.
_WEDGED_SECONDS = 30.0
#: One that broke pauses so long before it begins again, and twice as long each time, up to a minute; until it worked
#: for so long.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _SETTLED_SECONDS = 1.0, 60.0, 60.0


class Full(Exception):
    """So many wait that one more is refused."""


class Stopped(Exception):
    """The engine has stopped."""


class EngineThread(ABC, Generic[Asked]):
    """What every engine is. Whoever makes one calls `begin` when all is ready."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closing = self._broken = False
        self._told_to_end = threading.Event()
        #: By `time.monotonic`, when the thread last came round.
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)

    @property
    def problem(self) -> str | None:
        """Why it cannot answer now; None: it can."""
        return self.stopped

    @property
    def stopped(self) -> str | None:
        """Why it does nothing; None: it does what it is asked."""
        if not self._thread.is_alive():
            return "the engine has stopped"
        if self._broken:
            return "the engine has stopped, and begins again"
        if time.monotonic() - self._beat > _WEDGED_SECONDS:
            return f"the engine has not come round for {_WEDGED_SECONDS:.0f} s"
        return None

    def begin(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def close(self) -> None:
        """End now; who waits is told `cancelled`."""
        with self._lock:
            self._closing = True
        self._told_to_end.set()
        self._inbox.put(None)
        self._thread.join()

    def _let_in(self, asked: Asked) -> None:
        """Hand `asked` to the thread.

        Raises:
            Full, Stopped: it is not taken on.
        """
        with self._lock:  # within, so that nobody comes in when the thread has said farewell
            if self._closing or self._broken:
                raise Stopped
            self._count_in(asked)
            self._inbox.put(asked)

    @abstractmethod
    def _count_in(self, asked: Asked) -> None:
        """Note that `asked` waits. Raises Full. Called with the lock held."""

    # The thread ----------------------------------------------------------------------------------------------

    @abstractmethod
    def _round(self) -> None:
        """Take in what has come, and do some of it."""

    @abstractmethod
    def _farewell(self, problem: str | None) -> None:
        """Tell everybody who was taken on that it ends, and forget them; `problem`: for which it does (None: it was
        told to)."""

    def _live(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            began = time.monotonic()
            if not self._work():
                return
            if time.monotonic() - began > _SETTLED_SECONDS:
                pause = _PAUSE_SECONDS
            self._told_to_end.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            self._beat = time.monotonic()
            with self._lock:
                self._broken = False

    def _work(self) -> bool:
        """Serve until it is told to end, or breaks; whether it broke."""
        problem = None
        try:
            while not self._closing:
                self._beat = time.monotonic()
                self._round()
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
            _LOG.exception("the engine has stopped")
            with self._lock:
                self._broken = True
        self._farewell(problem)
        return problem is not None

    def _arrived(self, *, wait: bool) -> list[Asked]:
        """What has come since; `wait`: a moment, for the first."""
        found: list[Asked] = []
        while True:
            try:
                asked = self._inbox.get(timeout=_IDLE_SECONDS) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return found
            wait = False
            if asked is not None:
                found.append(asked)
