"""What the registry says becomes so, step by step, with every request answered on the way.

A new version gets workers beside those that serve. When all are ready, and the probe (if there is one) was answered as
well as before, new requests go to them, and the former ones answer what they have begun and end. A version that cannot
start, whose workers keep dying, or that does worse than the one before is rolled back in the registry, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.core.errors import ModelError, TuttiError
from tutti.serve.gateway.fleet import Fleet
from tutti.serve.gateway.order import Order
from tutti.serve.gateway.pool import Pool
from tutti.serve.gateway.probe import Question, read_probe
from tutti.serve.gateway.rising import Rising
from tutti.serve.gateway.scale import Bounds, Moment, Scaler
from tutti.serve.gateway.source import Source
from tutti.serve.gateway.tally import Tally
from tutti.serve.gateway.verdict import verdict
from tutti.serve.gateway.worker import Worker
from tutti.serve.settings import Settings

_LOG = logging.getLogger("uvicorn.error")
_EVERY_SECONDS = 0.1
#: The registry is looked at, and versions are compared.
_LOOK_SECONDS = 0.5
#: Requests whose times say how late answers are now: the last ones, and none that is long past.
_RECENT, _RECENT_SECONDS = 100, 60.0
#: A request may take so much longer than the guard lets it, before its worker goes.
_MARGIN_SECONDS = 5
#: The path of a socket has 107 bytes at most.
_LONGEST_PLACE = 70


class Follower:
    """Keeps `fleet` as `source` says.

    Raises:
        DataError: the probe cannot be read.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        rules: ServiceConfig,
        bounds: Bounds,
        say: Callable[[str], None],
    ) -> None:
        self.fleet = Fleet()
        #: Of all versions since the start, for the metrics.
        self.pools: dict[int, Pool] = {}
        #: Workers that were added and sent away, for the metrics.
        self.scaled = {"up": 0, "down": 0}
        #: Versions that were rolled back by themselves, since the start.
        self.rolled_back = 0
        self._source, self._rules, self._bounds, self._say = source, rules, bounds, say
        self._settings = replace(settings, name=settings.name or source.name)
        self._questions: Sequence[Question] = ()
        if rules.release.probe is not None:
            self._questions = read_probe(Path(rules.release.probe))
        self._rising: dict[int, Rising] = {}
        self._before: Tally | None = None
        self._since = 0.0
        self._scaler = Scaler(bounds, rules.scale)
        self._retiring: set[asyncio.Task[None]] = set()
        self._started = 0
        self._state = source.state()
        self._looked = 0.0
        self._hopeless: dict[int, str] = {}
        self._told: str | None = None

    @asynccontextmanager
    async def living(self, welcome: Callable[[Worker], Awaitable[None]]) -> AsyncIterator[None]:
        """While it does so. `welcome`: is called with a worker when the first one can answer.

        Raises:
            TuttiError: nothing can be served.
        """
        place = tempfile.gettempdir()
        with tempfile.TemporaryDirectory(
            prefix="tutti-", dir=place if len(place) < _LONGEST_PLACE else "/tmp"
        ) as sockets:
            self._sockets = Path(sockets)
            try:
                while self.fleet.serving is None:
                    self._tick()
                    if (why := self._hopeless.get(self._state.serving or 0)) is not None:
                        raise ModelError(f"version {self._state.serving} cannot be served: {why}")
                    await asyncio.sleep(_EVERY_SECONDS)
                worker = self.fleet.pools[self.fleet.serving].pick()
                if worker is not None:
                    await welcome(worker)
                following = asyncio.create_task(self._follow())
                try:
                    yield
                finally:
                    following.cancel()
            finally:
                await self._close()

    async def _follow(self) -> None:
        while True:
            try:
                self._tick()
            except Exception:  # whoever is served must not pay for it
                _LOG.exception("a step of the gateway failed; it goes on")
            await asyncio.sleep(_EVERY_SECONDS)

    async def _close(self) -> None:
        for rising in self._rising.values():
            rising.cancel()
        await asyncio.gather(*[rising.pool.close(0) for rising in self._rising.values()], *self._retiring)

    # A step --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        looks = now - self._looked >= _LOOK_SECONDS
        if looks:
            self._looked = now
            self._look()
        state, fleet = self._state, self.fleet
        for number in (state.serving, state.canary):
            if number is not None and number not in self._rising and number not in self._hopeless:
                self._begin(number)
        for rising in self._rising.values():
            rising.pool.tick(now)
        new = None if state.serving == fleet.serving else state.serving
        # A canary that is promoted gets more workers first.
        if new is not None and self._is_up(new) and fleet.pools[new].is_full:
            self._shift(new)
        if state.canary is None or not self._is_up(state.canary):
            fleet.canary = None
        elif fleet.canary != state.canary:
            fleet.canary = state.canary
            self._say(f"version {state.canary} is the canary: {state.percent:g} % of all requests")
        fleet.percent = state.percent
        self._retire()
        if looks:
            self._judge(now)
            self._scale(now)

    def _look(self) -> None:
        """What the registry says now; where it cannot be read, what it last said."""
        try:
            self._state = self._source.state()
        except TuttiError as error:
            self._tell(f"the releases cannot be followed: {error}")

    def _tell(self, trouble: str) -> None:
        """Say it, but not twice in a row."""
        if trouble != self._told:
            self._told = trouble
            self._say(trouble)

    def _begin(self, number: int) -> None:
        try:
            place, version = self._source.model(number)
        except TuttiError as error:
            self._give_up(number, str(error))
            return

        def make() -> Worker:
            self._started += 1
            name = f"{number}.{self._started}"
            order = Order(place, version, self._settings, self._sockets / f"{name}.sock")
            return Worker(name, order, self._threads, self._say)

        pool = Pool(number, make, self._wanted(number), self._say)
        self._rising[number] = Rising(pool, self._questions, self._say)
        self.fleet.pools[number] = self.pools[number] = pool
        self._say(f"version {number} is being started: {place}")

    def _wanted(self, number: int) -> int:
        """Workers that it begins with: as many as serve now, or a canary's share of them."""
        now = self._bounds.low
        if self.fleet.serving is not None:
            now = max(now, self.fleet.pools[self.fleet.serving].wanted)
        if number == self._state.canary:
            return max(1, math.ceil(now * self._state.percent / 100))
        return now

    @property
    def _threads(self) -> int:
        """Of each worker: together they have the cores."""
        return max(1, len(os.sched_getaffinity(0)) // self._bounds.high)

    def _is_up(self, number: int) -> bool:
        """Whether requests may go to it; where it never will be, it is rolled back."""
        rising = self._rising.get(number)
        if rising is None:
            return False
        if number != self.fleet.serving:
            rising.pool.wanted = max(rising.pool.wanted, self._wanted(number))
        before = self._rising.get(self.fleet.serving or 0)
        is_up = rising.is_up(None if before is None else before.probed, self._rules.release.probe_margin)
        if rising.failure is not None:
            self._give_up(number, rising.failure)
        return is_up and rising.failure is None

    def _shift(self, number: int) -> None:
        """New requests go to it from now on."""
        former = None if self.fleet.serving is None else self.fleet.pools[self.fleet.serving]
        was_rolled_back = former is not None and self._was_rolled_back(former.version)
        self._before = None if former is None or was_rolled_back else former.tally
        self.fleet.serving, self._since = number, time.monotonic()
        if self.fleet.canary == number:
            self.fleet.canary = None
        self._scaler = Scaler(self._bounds, self._rules.scale)
        self._say(f"version {number} serves now")

    def _was_rolled_back(self, number: int) -> bool:
        standing = self._state.standings.get(number)
        return standing is not None and standing.state == "rolled back"

    def _retire(self) -> None:
        """What is not served any more answers what it has begun, and ends."""
        kept = {self.fleet.serving, self.fleet.canary, self._state.serving, self._state.canary}
        for number in [one for one in self._rising if one not in kept]:
            rising = self._rising.pop(number)
            del self.fleet.pools[number]
            rising.cancel()
            patience = self._rules.limits.request_seconds + _MARGIN_SECONDS
            task = asyncio.create_task(rising.pool.close(patience))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        for number in [one for one in self._hopeless if one not in kept]:
            del self._hopeless[number]

    # By itself -----------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> None:
        """Roll back what does worse than what was before it."""
        fleet, rules = self.fleet, self._rules.release
        if fleet.serving is None:
            return
        serving = fleet.pools[fleet.serving].tally
        if fleet.canary is not None:
            why = verdict(fleet.pools[fleet.canary].tally, serving, rules)
            if why is not None:
                self._give_up(fleet.canary, why)
        if self._before is not None and now - self._since < rules.watch_seconds:
            why = verdict(serving, self._before, rules) or self._rising[fleet.serving].failure
            if why is not None and self._give_up(fleet.serving, why):
                self._before = None

    def _give_up(self, number: int, why: str) -> bool:
        """Roll it back, if there is anything to go back to; whether it is given up (else it is tried again)."""
        if number in self._hopeless:
            return True
        try:
            deed = self._source.roll_back(number, why)
        except TuttiError as error:
            if number == self._state.serving and self._state.previous is None:
                self._hopeless[number] = why
            self._tell(
                f"version {number} is worse than it should be ({why}), and cannot be rolled back: {error}"
            )
            return number in self._hopeless
        if deed is None:
            self._hopeless[number] = why
            return True
        self.rolled_back += 1
        self._say(f"version {number} is rolled back: {why}")
        self._looked = 0.0
        self._look()
        return True

    def _scale(self, now: float) -> None:
        if self.fleet.serving is None or self._bounds.low == self._bounds.high:
            return
        pool = self.fleet.pools[self.fleet.serving]
        moment = Moment(now, pool.busy, pool.load.waiting)
        recent = pool.tally.times_since(now - _RECENT_SECONDS)[-_RECENT:]
        wanted = self._scaler.wanted(pool.wanted, moment, recent)
        if wanted == pool.wanted:
            return
        direction = "up" if wanted > pool.wanted else "down"
        self.scaled[direction] += 1
        self._say(f"version {pool.version}: {pool.wanted} → {wanted} workers ({moment.waiting} texts wait)")
        pool.wanted = wanted
        if direction == "down":
            pool.shrink(self._rules.limits.request_seconds + _MARGIN_SECONDS)
