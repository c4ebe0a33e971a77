"""How many workers there should be: quickly more, slowly fewer, so that they do not come and go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutti.config.service import ScaleConfig
from tutti.core.errors import ConfigError

#: One worker fewer is enough where those that are left would be busy for less of the time than this.
_BUSY = 0.7
#: With so many requests a percentile says something.
_LEAST_REQUESTS = 20


@dataclass(frozen=True)
class Bounds:
    """So many workers at least, and at most."""

    low: int
    high: int

    @classmethod
    def read(cls, text: str) -> Bounds:
        """`2`, or `2:6`. Raises ConfigError."""
        found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
        low = int(found[1]) if found else 0
        high = int(found[2] or low) if found else 0
        if not 1 <= low <= high:
            raise ConfigError(
                f"--processes {text}: that is no number of processes", "write 2, or 2:6 for 2 to 6"
            )
        return cls(low, high)


@dataclass(frozen=True)
class Moment:
    """What was so at `time`: workers that computed, texts that waited."""

    time: float
    busy: int
    waiting: int


class Scaler:
    """Of one pool. Ask it several times a second."""

    def __init__(self, bounds: Bounds, rules: ScaleConfig) -> None:
        self._bounds, self._rules = bounds, rules
        self._pressed_since: float | None = None
        self._idle_since: float | None = None
        self._busy = 0.0  # smoothed
        self._last: float | None = None

    def wanted(self, workers: int, moment: Moment, recent_seconds: Sequence[float]) -> int:
        """How many there should be, where there are `workers` now; `recent_seconds`: how long the last requests took to
        be answered."""
        now, rules = moment.time, self._rules
        self._smooth(moment)
        late = (
            rules.latency_seconds is not None
            and len(recent_seconds) >= _LEAST_REQUESTS
            and float(np.percentile(recent_seconds, 95)) > rules.latency_seconds
        )
        pressed = moment.waiting > rules.waiting * workers or late
        idle = not late and moment.waiting == 0 and self._busy < _BUSY * (workers - 1)
        self._pressed_since = (self._pressed_since or now) if pressed else None
        self._idle_since = (self._idle_since or now) if idle else None
        if self._pressed_since is not None and now - self._pressed_since >= rules.up_seconds:
            self._pressed_since = None
            return min(workers + 1, self._bounds.high)
        if self._idle_since is not None and now - self._idle_since >= rules.down_seconds:
            self._idle_since = None
            return max(workers - 1, self._bounds.low)
        return workers

    def _smooth(self, moment: Moment) -> None:
        """The mean number of busy workers over about `down_seconds`."""
        passed = self._rules.down_seconds if self._last is None else moment.time - self._last
        share = min(1.0, passed / self._rules.down_seconds)
        self._busy = (1 - share) * self._busy + share * moment.busy
        self._last = moment.time
