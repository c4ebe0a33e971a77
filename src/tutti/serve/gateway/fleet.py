"""All versions that are served now, and which of them a request is for."""

from __future__ import annotations

import asyncio
import time

import xxhash

from tutti.serve.gateway.pool import Pool
from tutti.serve.gateway.worker import Load, Worker
from tutti.serve.refusal import Refusal

#: What a client may name, and every answer names.
HEADER = "x-tutti-version"


#: How long a request waits where all workers are about to come back.
_PATIENCE_SECONDS = 30.0


def is_chosen(name: str, percent: float) -> bool:
    """Whether the request `name` is among `percent` of all."""
    return xxhash.xxh3_64_intdigest(name.encode()) % 10_000 < 100 * percent


class Fleet:
    """`pools`: by version, those that are being started and those that are about to end among them. `serving`: who gets
    requests; `canary`: who gets `percent` of them."""

    def __init__(self) -> None:
        self.pools: dict[int, Pool] = {}
        self.serving: int | None = None
        self.canary: int | None = None
        self.percent = 0.0

    @property
    def problem(self) -> str | None:
        """Why nobody can answer now; None: somebody can."""
        if self.serving is None:
            return "no version is ready yet"
        return self.pools[self.serving].problem

    @property
    def load(self) -> tuple[int, int]:
        """What computes and what waits, in all."""
        loads: list[Load] = [pool.load for pool in self.pools.values()]
        return sum(load.served for load in loads), sum(load.waiting for load in loads)

    async def worker(self, name: str, asked: str | None) -> tuple[Pool, Worker]:
        """For the request `name`, with the pool that it is of; see `choose`. Where no worker is ready, that may take
        until one is.

        Raises:
            Refusal: 503, none came; or as `choose`.
        """
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            pool = self.choose(name, asked)
            if (worker := pool.pick()) is not None:
                return pool, worker
            if time.monotonic() > until:
                raise Refusal(
                    503, f"nobody can answer now: {pool.problem}", code="no_worker", retry_seconds=5
                )
            await asyncio.sleep(0.02)

    def choose(self, name: str, asked: str | None) -> Pool:
        """For the request `name`: its hash decides whether the canary gets it, so one that is sent again by the same
        name goes to the same version. `asked`: the version that the client wants.

        Raises:
            Refusal: that one is not served, or none is.
        """
        if self.serving is None:
            raise Refusal(503, "no version is ready yet", code="no_worker", retry_seconds=5)
        if asked is not None:
            return self.pools[self._number(asked)]
        if self.canary is not None and is_chosen(name, self.percent) and self.pools[self.canary].ready:
            return self.pools[self.canary]
        return self.pools[self.serving]

    def _number(self, asked: str) -> int:
        there = [self.serving] if self.canary is None else [self.serving, self.canary]
        number = (
            self.canary
            if asked == "canary"
            else int(asked)
            if asked.isdecimal() and len(asked) < 10
            else None
        )
        if number is None or number not in there:
            known = " and ".join(map(str, there))
            message = f"{HEADER}: {asked[:20]!r} is not served now; versions that are: {known}"
            raise Refusal(404, message, code="version_not_served", param=HEADER)
        return number
