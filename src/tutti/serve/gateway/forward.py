"""The application of a gateway: a request goes to a worker, and its answer comes back; streams as they come.

A request is sent to another worker where the first one has not begun to answer it: it could not be reached, it died
before its answer had begun (a whole answer: before it was there), or it said that its engine has stopped, be it as the
first event of a stream. To compute twice does no harm, since nothing is kept. A stream that has begun is not begun
again: it ends with an error, and counts as one.
"""

from __future__ import annotations

import time

import aiohttp
import yarl
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tutti.serve.gateway.fleet import HEADER, Fleet
from tutti.serve.gateway.pool import Pool
from tutti.serve.gateway.relay import (
    failure_in,
    inward,
    send_stream,
    send_whole,
    start_of,
    streams,
    unless_left,
)
from tutti.serve.gateway.worker import Worker
from tutti.serve.guard.exchange import OWNER_HEADER, exchange_of
from tutti.serve.guard.scopes import OPEN, route_of
from tutti.serve.refusal import Refusal, stopped

#: Workers that are asked, at most: a request that kills who computes it must not kill all.
_TRIES = 3


class _Again(Exception):
    """It was not begun to be answered, and another worker may."""


class Forward:
    """To the workers of `fleet`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN:
            await self._health()(scope, receive, send)
            return
        if route_of(scope["path"]) == "other":
            raise Refusal(404, "Not Found")
        body = (await receive()).get("body", b"")
        await unless_left(self._answer(scope, body, send), scope, receive)

    def _health(self) -> JSONResponse:
        problem = self._fleet.problem
        if problem is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "reason": problem}, status_code=503)

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        name, asked = exchange_of(scope).id, Headers(scope=scope).get(HEADER)
        for attempt in range(1, _TRIES + 1):
            pool, worker = await self._fleet.worker(name, asked)
            with worker.busy():
                began = time.perf_counter()
                try:
                    await _pass_on(scope, body, pool, worker, send, last=attempt == _TRIES)
                    return
                except _Again:
                    worker.doubt()
                    pool.tally.note_repeated(time.perf_counter() - began)
        raise stopped()


async def _pass_on(scope: Scope, body: bytes, pool: Pool, worker: Worker, send: Send, *, last: bool) -> None:
    """Raises _Again."""
    began = time.perf_counter()
    try:
        async with worker.session.request(
            scope["method"],
            _url_of(scope),
            data=body or None,
            headers=inward(scope, OWNER_HEADER),
            allow_redirects=False,
        ) as answer:
            start = start_of(answer)
            start["headers"].append((HEADER.encode(), str(pool.version).encode()))
            first = await (answer.content.readany() if streams(answer) else answer.read())
            seconds = time.perf_counter() - began
            if _has_stopped(answer, first) and not last:
                raise _Again
            if streams(answer):
                broken = await send_stream(answer, start, first, send)
                pool.tally.note(answer.status, seconds, broken=broken)
                return
    except (aiohttp.ClientError, OSError) as error:
        raise _Again from error
    pool.tally.note(answer.status, seconds)
    await send_whole(start, first, send)


def _has_stopped(answer: aiohttp.ClientResponse, first: bytes) -> bool:
    """Whether who was asked says that it cannot compute; of a stream, before anything else."""
    if not streams(answer):
        return answer.status == 503
    return failure_in(first.partition(b"\n\n")[0]) == stopped().code


def _url_of(scope: Scope) -> yarl.URL:
    query = scope["query_string"].decode("latin-1")
    path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    return yarl.URL(f"http://worker{path}{'?' if query else ''}{query}", encoded=True)
