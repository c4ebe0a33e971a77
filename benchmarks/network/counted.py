"""What a replica writes into its run's events beside what every run writes there: bytes and times, for the benchmark.

counted   after every step: bytes that the policy's meter counted, and that the link of this host sent and received
idle      bytes of the link in some seconds in which nothing was exchanged but signs of life
"""

from __future__ import annotations

import time

from benchmarks.network.hosts import counters
from tutti.core.events import EventWriter

#: What was sent before has arrived, and then so long nothing is.
_QUIET_SECONDS, _IDLE_SECONDS = 0.5, 2.0


class Counting:
    """Of one replica. `link`: whether it is on a host of its own, whose link counts."""

    def __init__(self, events: EventWriter, *, link: bool) -> None:
        self._events = events
        self._link = link
        self._was_idle = False

    def step(self, step: int, metered: int) -> None:
        """Step number `step` has ended; `metered`: sent since the beginning. After the first one nobody does anything
        for a while: everybody is there, and what the link counts is what membership costs."""
        sent, received = counters() if self._link else (0, 0)
        self._events.write("counted", step=step, metered=metered, sent=sent, received=received)
        if self._link and not self._was_idle:
            self._was_idle = True
            time.sleep(_QUIET_SECONDS)
            before = counters()
            time.sleep(_IDLE_SECONDS)
            sent, received = (now - then for now, then in zip(counters(), before, strict=True))
            self._events.write("idle", seconds=_IDLE_SECONDS, sent=sent, received=received)
