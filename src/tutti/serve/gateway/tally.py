"""How the requests of one version went: counted for good, and the last ones kept to be compared."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

#: Requests that are compared, at most.
_KEPT = 1000
#: The first ones of a version are slower than it is: nothing has been touched yet.
_WARMING_UP = 10


class Went(NamedTuple):
    """`failed`: it could not be computed, or not in time. `seconds`: until the answer began. `ended`: when, by the
    clock that only goes forward."""

    failed: bool
    seconds: float
    ended: float = 0.0


class Tally:
    """Of one version, since it came."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        #: Tries that were repeated elsewhere, since the worker died before it said anything.
        self.repeated = 0
        self._last: deque[Went] = deque(maxlen=_KEPT)

    def note(self, status: int, seconds: float, *, broken: bool = False) -> None:
        """Count one that was answered with `status`, and began to be after `seconds`. What the client has done wrong,
        or too often, says nothing of the version."""
        self.statuses[str(status)] += 1
        if not 400 <= status < 500:
            self._last.append(Went(broken or status >= 500, seconds, time.monotonic()))

    def note_repeated(self, seconds: float) -> None:
        """Count a try that has to be repeated."""
        self.repeated += 1
        self._last.append(Went(True, seconds, time.monotonic()))

    @property
    def requests(self) -> int:
        """That were answered."""
        return self.statuses.total()

    @property
    def compared(self) -> Sequence[Went]:
        """The last ones."""
        return tuple(self._last)

    @property
    def times(self) -> list[float]:
        """Seconds until an answer began, of the last ones that did not fail."""
        return [went.seconds for went in self._warm if not went.failed]

    def times_since(self, moment: float) -> list[float]:
        """Of these, of requests that ended later than `moment`."""
        return [went.seconds for went in self._warm if not went.failed and went.ended > moment]

    @property
    def _warm(self) -> list[Went]:
        return list(self._last)[_WARMING_UP if len(self._last) < _KEPT else 0 :]
