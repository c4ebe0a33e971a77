"""Work on threads of its own that nobody has to end: they never keep the process from leaving."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run `work` on a thread called `name`; the future has what it returned or raised."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result


class Courier:
    """A thread that runs exchanges one after the other."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="sync", daemon=True).start()

    def send(self, exchange: Callable[[], None]) -> Callable[[], None]:
        """Have `exchange` run after everything that was sent before it; its errors are raised by waiting."""
        result: Future[None] = Future()
        self._tasks.put((exchange, result))
        return lambda: result.result()

    def _work(self) -> None:
        while True:
            exchange, result = self._tasks.get()
            failure: BaseException | None = None
            try:
                exchange()
            except BaseException as error:
                failure = error
            del exchange  # or what was exchanged would stay in memory until the next
            if failure is None:
                result.set_result(None)
            else:
                result.set_exception(failure)
            del result, failure
