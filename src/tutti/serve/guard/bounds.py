"""How much one request may take, and how many there may be at a time: refused before it costs memory."""

from __future__ import annotations

import asyncio
import json

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.config.service import LimitsConfig
from tutti.serve.guard.scopes import OPEN
from tutti.serve.refusal import Refusal


class Bounds:
    """Reads the whole body, if it may be that large, before anybody else hears of the request."""

    def __init__(self, app: ASGIApp, limits: LimitsConfig) -> None:
        self._app, self._limits = app, limits
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        if self._inside >= self._limits.requests:
            raise Refusal(429, "too many requests are here already", code="overloaded", retry_seconds=1)
        self._inside += 1
        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self._in_time(scope, _replay(body, receive), send)
        finally:
            self._inside -= 1

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Message | None = None

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message
            await send(message)

        try:
            async with asyncio.timeout(self._limits.request_seconds) as clock:
                await self._app(scope, receive, noted)
        except TimeoutError:
            if not clock.expired():
                raise
            refusal = Refusal(504, "it took too long", code="timeout")
            if begun is None:
                raise refusal from None
            if Headers(raw=begun["headers"]).get("content-type", "").startswith("text/event-stream"):
                line = f"data: {json.dumps(refusal.body())}\n\n".encode()
                await send({"type": "http.response.body", "body": line, "more_body": False})

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it; None: the client has gone.

        Raises:
            Refusal: it is too large (413), or does not come (408).
        """
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                return await self._read(scope, receive)
        except TimeoutError:
            raise Refusal(408, "the rest of the request did not come", code="timeout") from None

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        most = self._limits.body_bytes
        refusal = Refusal(413, f"a request may have {most} bytes at most", code="request_too_large")
        said = Headers(scope=scope).get("content-length", "")
        if said.isdecimal() and int(said) > most:
            raise refusal
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise refusal
            if not message.get("more_body"):
                return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """What gives `body` at once, and then what `receive` gives: that the client has gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
