"""The workers of one version: as many as are wanted, and another one for each that dies or is wedged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from tutti.serve.gateway.tally import Tally
from tutti.serve.gateway.worker import Load, Worker

#: How long nobody starts another worker after one, two, … have died in a row; the last one goes for all others.
_PAUSES_SECONDS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
#: One that lived so long did not die of how it was started.
_SETTLED_SECONDS = 60.0
#: So often a version may fail to start before it is given up.
_TRIES = 3


class Pool:
    """`make`: a worker that was just started. `wanted`: so many. `say`: what is told of them."""

    def __init__(
        self, version: int, make: Callable[[], Worker], wanted: int, say: Callable[[str], None]
    ) -> None:
        self.version, self._make, self.wanted, self._say = version, make, wanted, say
        self.tally = Tally()
        self.restarts = 0
        #: Why it will never be ready; None: it may be.
        self.failure: str | None = None
        self._workers: list[Worker] = []
        #: Those that answer what they have begun, and end.
        self.leaving: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._died = 0  # in a row
        self._not_before = 0.0
        self._was_ready = False
        self._last_death: str | None = None

    @property
    def ready(self) -> list[Worker]:
        """Those that requests may be sent to."""
        return [worker for worker in self._workers if worker.is_ready]

    @property
    def is_full(self) -> bool:
        """Whether as many are ready as are wanted."""
        return len(self.ready) >= self.wanted

    @property
    def problem(self) -> str | None:
        """Why nobody can answer now; None: somebody can. Whoever comes may read it."""
        if any(worker.is_well for worker in self._workers):
            return None
        return "the workers have died, or do not answer" if self._was_ready else "no worker is ready yet"

    @property
    def load(self) -> Load:
        """Of all together."""
        loads = [worker.load for worker in self.ready]
        return Load(sum(one.served for one in loads), sum(one.waiting for one in loads))

    @property
    def busy(self) -> int:
        """Workers that compute something."""
        return sum(worker.load.served > 0 for worker in self.ready)

    @property
    def keeps_dying(self) -> str | None:
        """Why its workers died the last time, of several in a row; None: they do not."""
        return self._last_death if self._died >= _TRIES else None

    @property
    def in_flight(self) -> int:
        """Requests that are with workers."""
        return sum(worker.in_flight for worker in (*self._workers, *self.leaving))

    def tick(self, now: float) -> None:
        """Bury, replace, start, and send away: called several times a second."""
        for worker in list(self._workers):
            if worker.ended is not None:
                self._bury(worker, now)
            elif (illness := worker.illness) is not None:
                self._say(f"[{worker.name}] is replaced: {illness}")
                self._mourn(f"worker {worker.name}: {illness}", now)
                self._give_up(illness, at_once=False)
                self._end(worker, worker.kill())
            elif worker.ready_since is not None:
                self._was_ready = True
                if now - worker.ready_since > _SETTLED_SECONDS:
                    self._died = 0
        if self.failure is None and len(self._workers) < self.wanted and now >= self._not_before:
            self._workers.append(self._make())

    def shrink(self, patience_seconds: float) -> None:
        """Send those away that are not wanted any more: what they have begun they answer."""
        for worker in sorted(self._workers, key=lambda one: (one.is_ready, one.in_flight))[
            : -self.wanted or None
        ]:
            self._end(worker, worker.leave(patience_seconds))

    def pick(self) -> Worker | None:
        """The one with least to do; None: none is ready."""
        ready = self.ready
        return min(
            [one for one in ready if one.is_well] or ready, key=lambda one: one.in_flight, default=None
        )

    async def close(self, patience_seconds: float) -> None:
        """End all, when what was begun is answered."""
        self.wanted = 0
        self.shrink(patience_seconds)
        await asyncio.gather(*self._ending)

    # -----------------------------------------------------------------------------------------------------------

    def _end(self, worker: Worker, ending: Coroutine[None, None, None]) -> None:
        self._workers.remove(worker)
        self.leaving.add(worker)
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda _: self.leaving.discard(worker))

    def _bury(self, worker: Worker, now: float) -> None:
        self._end(worker, worker.kill())
        self._say(f"[{worker.name}] has died: {worker.ended}")
        self._mourn(f"worker {worker.name} has died: {worker.ended}", now)
        self._give_up(worker.ended, at_once=worker.hopeless)

    def _give_up(self, why: str | None, *, at_once: bool) -> None:
        """Where none was ever ready: after some tries."""
        if not self._was_ready and (at_once or self._died >= _TRIES):
            self.failure = why

    def _mourn(self, death: str, now: float) -> None:
        self.restarts += 1
        self._last_death = death
        self._not_before = now + _PAUSES_SECONDS[min(self._died, len(_PAUSES_SECONDS) - 1)]
        self._died += 1
