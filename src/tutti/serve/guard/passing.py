"""The layer that texts pass: what is asked goes in redacted and judged, what is answered comes out so.

It fails closed. Where redaction or judging breaks, the request ends with 503, a stream with an error, and nothing that
was not looked at passes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.serve.guard.answered import Answered
from tutti.serve.guard.asked import bounded, let_in, prompt_of, texts_of, writes
from tutti.serve.guard.exchange import OWNER_HEADER, TOKENS_HEADER, Exchange, exchange_of
from tutti.serve.guard.redact import Redactor
from tutti.serve.guard.texts import Way
from tutti.serve.refusal import Refusal

_LOG = logging.getLogger("uvicorn.error")
#: Routes of which a stream says at its end how much it was.
_STREAMS = frozenset({"/v1/chat/completions", "/v1/completions"})
#: Bodies with fewer bytes are looked at where they are.
_SMALL_BYTES = 4096
#: About so many bytes are a token, where a request was broken off before anybody counted.
_TOKEN_BYTES = 4
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Rules:
    """`inward`, `outward`: what happens to texts; `written_down`: redacts prompts for the audit log (None: they are not
    in it); `new_tokens`: of an answer at most; `texts`: that are asked for at most."""

    inward: Way
    outward: Way
    written_down: Redactor | None = None
    new_tokens: int | None = None
    texts: int | None = None


class Passing:
    """Before the application. Wants the whole body at once, as `Bounds` gives it."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        exchange, first = exchange_of(scope), await receive()
        body, asked = first.get("body", b""), dict[str, Any]()
        if scope["method"] == "POST":
            asked, body = await self._let_in(scope, body, exchange)
        passage = _Passage(self._rules.outward, exchange, asked, body, receive, send)
        try:
            await self._app(_with_length(scope, body, exchange.key or ""), passage.receive, passage.send)
        finally:
            broken_off = scope["method"] == "POST" and exchange.status in (None, 499)
            uncounted = exchange.status == 200 and exchange.route in _STREAMS
            if (broken_off or uncounted) and not exchange.prompt_tokens:
                exchange.prompt_tokens = len(body) // _TOKEN_BYTES

    async def _let_in(self, scope: Scope, body: bytes, exchange: Exchange) -> tuple[dict[str, Any], bytes]:
        """What is asked, as the application shall hear it. Raises Refusal."""
        rules = self._rules
        try:
            asked = json.loads(body)
            assert isinstance(asked, dict)
        except (ValueError, AssertionError, RecursionError) as error:
            raise Refusal(400, "the body is no JSON object") from error

        def look() -> dict[str, Any]:
            found = let_in(asked, rules.inward, exchange.redactions)
            if rules.written_down is not None:
                exchange.prompt = prompt_of(let_in(prompt_of(found), Way(rules.written_down), Counter()))
            return found

        slow = _takes_long(len(body), rules.inward, Way(rules.written_down))
        asked = await _closed(look, slow=slow)
        if writes(asked, exchange.route):
            if rules.texts is not None and (texts := texts_of(asked)) > rules.texts:
                raise Refusal(400, f"at most {rules.texts} texts for one request, not {texts}", param="n")
            asked = bounded(asked, rules.new_tokens, exchange.route)
        told = json.dumps(_counted(asked) if exchange.route in _STREAMS else asked)
        return asked, told.encode()


class _Passage:
    """The answer to one request, on its way from the application to the client."""

    def __init__(
        self, way: Way, exchange: Exchange, asked: dict[str, Any], body: bytes, receive: Receive, send: Send
    ) -> None:
        options = asked.get("stream_options")
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self._answered = Answered(way, exchange, usage=usage, texts=texts_of(asked))
        self._way, self._body, self._receive, self._send = way, body, receive, send
        self._exchange = exchange
        self._start: Message = {}
        self._parts = bytearray()
        self._streams = False
        self._heard = False
        #: Set when nothing more is wanted of the application.
        self._enough = asyncio.Event()

    async def receive(self) -> Message:
        """What the application hears: the body, and then that the client has gone, or that it was enough."""
        if not self._heard:
            self._heard = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        gone, enough = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._enough.wait())
        try:
            await asyncio.wait({gone, enough}, return_when=asyncio.FIRST_COMPLETED)
            return gone.result() if gone.done() else {"type": "http.disconnect"}
        finally:
            gone.cancel()
            enough.cancel()

    async def send(self, message: Message) -> None:
        """What the application says."""
        if self._enough.is_set():
            return
        if message["type"] == "http.response.start":
            self._start = message
            headers = MutableHeaders(raw=message["headers"])
            if (counted := headers.get(TOKENS_HEADER, "")).isdecimal():
                self._exchange.prompt_tokens = int(counted)
            del headers[TOKENS_HEADER]
            message["headers"] = headers.raw
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
            if self._streams:
                await self._send(message)
        elif self._streams:
            await self._send_part(message)
        else:
            self._parts += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_whole(bytes(self._parts))

    async def _send_whole(self, body: bytes) -> None:
        try:
            slow = _takes_long(len(body), self._way)
            body = await _closed(lambda: self._answered.whole(body), slow=slow)
        except Refusal as refusal:
            self._enough.set()
            await refusal.response()({"type": "http"}, self._receive, self._send)
            return
        MutableHeaders(scope=self._start)["content-length"] = str(len(body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_part(self, message: Message) -> None:
        try:
            body, last = message.get("body", b""), not message.get("more_body")
            told = await _closed(lambda: self._answered.part(body, last=last), slow=self._way.slow)
        except Refusal as refusal:
            self._enough.set()
            line = f"data: {json.dumps(refusal.body())}\n\n".encode()
            await self._send({"type": "http.response.body", "body": line, "more_body": False})
            return
        more = bool(message.get("more_body"))
        if self._answered.over and more:
            self._enough.set()
            told, more = told + b"data: [DONE]\n\n", False
        if told or not more:
            await self._send({"type": "http.response.body", "body": told, "more_body": more})


def _takes_long(size: int, *ways: Way) -> bool:
    """Whether the event loop should not wait for what happens in `ways` to so many bytes."""
    return any(way.slow or (size > _SMALL_BYTES and not way.open) for way in ways)


async def _closed(look: Callable[[], _Found], *, slow: bool) -> _Found:
    """What `look` finds; beside the event loop where it is `slow`.

    Raises:
        Refusal: 503, whatever went wrong.
    """
    try:
        return await asyncio.to_thread(look) if slow else look()
    except Refusal:
        raise
    except Exception as error:
        _LOG.exception("a text could not be looked at, and did not pass")
        raise Refusal(503, "texts cannot be looked at now", code="guard_failed", retry_seconds=5) from error


def _counted(asked: dict[str, Any]) -> dict[str, Any]:
    """`asked`, so that a stream says at its end how much it was."""
    options = asked.get("stream_options")
    if asked.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return asked
    return asked | {"stream_options": (options or {}) | {"include_usage": True}}


def _with_length(scope: Scope, body: bytes, owner: str) -> Scope:
    ours = {b"content-length": str(len(body)).encode(), OWNER_HEADER.encode(): quote(owner).encode()}
    headers = [one for one in scope["headers"] if one[0] not in (*ours, b"transfer-encoding")]
    return {**scope, "headers": [*headers, *ours.items()]}
