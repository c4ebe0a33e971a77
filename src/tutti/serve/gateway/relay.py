"""What it takes to pass on an answer, whoever gives it: whole, or as it comes, and not for somebody who has left."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine
from contextlib import suppress

import aiohttp
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from tutti.serve.guard.exchange import TOKENS_HEADER
from tutti.serve.refusal import SERVER_ERROR, stopped
from tutti.web.gone import until_gone

#: What is told of a request, and a client of an answer, beside what the gateway itself says.
_INWARD = ("content-type", "accept")
_OUTWARD = ("content-type", "cache-control", "x-accel-buffering", "retry-after", TOKENS_HEADER)
#: Of an event in a stream, as whoever computes ends its lines.
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


async def unless_left(answering: Coroutine[None, None, None], scope: Scope, receive: Receive) -> None:
    """Do it, as long as the client waits for it."""
    doing = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        gone.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})  # who computes has been told before this request counts as over


def inward(scope: Scope, *ours: str) -> dict[str, str]:
    """The headers of a request that are passed on; `ours`: that are for our own workers alone."""
    given = Headers(scope=scope)
    return {name: given[name] for name in (*_INWARD, *ours) if name in given}


def start_of(answer: aiohttp.ClientResponse) -> Message:
    """How the answer begins."""
    headers = [(name.encode(), answer.headers[name].encode()) for name in _OUTWARD if name in answer.headers]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


def streams(answer: aiohttp.ClientResponse) -> bool:
    """Whether it comes event by event."""
    return answer.content_type == "text/event-stream"


async def send_whole(start: Message, body: bytes, send: Send) -> None:
    """Pass on an answer that is there."""
    start["headers"].append((b"content-length", str(len(body)).encode()))
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})


def failure_in(events: bytes) -> str | None:
    """Why who computes could not go on, by the code of a `Refusal` that stands among `events`; None: it could."""
    for line in events.splitlines() if b'{"error"' in events else ():
        with suppress(ValueError, RecursionError):  # a service elsewhere may say anything
            told = json.loads(line.removeprefix(b"data: "))
            error = told.get("error") if isinstance(told, dict) else None
            if isinstance(error, dict) and error.get("type") == SERVER_ERROR:
                return str(error.get("code"))
    return None


async def send_stream(answer: aiohttp.ClientResponse, start: Message, first: bytes, send: Send) -> bool:
    """Pass on what comes, `first` first, whole events only; whether it broke off, or could not be computed."""
    await send(start)
    held, broken = first, False
    try:
        while held or not answer.content.at_eof():
            end = max((found.end() for found in _END.finditer(held)), default=0)
            if end:
                broken = broken or failure_in(held[:end]) is not None
                await send({"type": "http.response.body", "body": held[:end], "more_body": True})
                held = held[end:]
            if not (part := await answer.content.readany()):
                break
            held += part
    except (aiohttp.ClientError, OSError):
        held, broken = f"data: {json.dumps(stopped().body())}\n\n".encode(), True
    await send({"type": "http.response.body", "body": held, "more_body": False})
    return broken
