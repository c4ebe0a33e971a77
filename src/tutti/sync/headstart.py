"""A step that is made again while its members still meet.

Whoever is lost is waited for until its last heartbeat is old (`membership`), and in that time the others know well who
will be left. So they compute what each of them will have to if they are right, and exchange it when the meeting
stands. Who was wrong computes again; what others do does not depend on what anybody thought.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tutti.sync.transport import PeerLost


class WrongGuess(PeerLost):
    """The members are others than was thought; the group that has met is whole."""


class HeadStart:
    """`meet` goes on in a thread of its own; `is_right`, asked once it has ended, says whether the guess was good."""

    def __init__(self, meet: Callable[[], object], is_right: Callable[[], bool]) -> None:
        self._meet = meet
        self._is_right = is_right
        self._error: BaseException | None = None
        self._right: bool | None = None
        #: Seconds for which the computation stood still until the meeting was over.
        self.waited_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="head start", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Wait for the meeting. Raises WrongGuess, or what the meeting raised."""
        began = time.perf_counter()
        self._thread.join()
        self.waited_seconds += time.perf_counter() - began
        if self._error is not None:
            raise self._error
        if self._right is None:
            self._right = self._is_right()
        if not self._right:
            raise WrongGuess("the members are others than was thought")

    def end(self) -> None:
        """Wait for the meeting, however it ends. Raises what it raised, but for PeerLost."""
        self._thread.join()
        if self._error is not None and not isinstance(self._error, PeerLost):
            raise self._error

    def _run(self) -> None:
        try:
            self._meet()
        except BaseException as error:  # it is raised where it is waited for
            self._error = error
