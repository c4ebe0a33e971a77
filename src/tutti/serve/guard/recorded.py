"""The outermost layer: every request gets an id and ends in one way that clients understand, and is noted."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.serve.guard.exchange import Exchange
from tutti.serve.guard.scopes import route_of
from tutti.serve.refusal import Refusal

_LOG = logging.getLogger("uvicorn.error")
#: An id that clients may give a request; another one is replaced.
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Recorded:
    """Before all others. `notice`: is told of every request when it is over."""

    def __init__(self, app: ASGIApp, notice: Callable[[Exchange], None]) -> None:
        self._app, self._notice = app, notice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no others
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _WELL_FORMED.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        exchange = Exchange(name, scope["method"], route_of(scope["path"]), headers.get("traceparent"))
        scope.setdefault("state", {})["exchange"] = exchange

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = exchange.id
            elif message.get("body") and exchange.first_seconds is None:
                exchange.first_seconds = exchange.seconds
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                exchange.whole = True

        try:
            await self._app(scope, receive, noted)
        except Refusal as refusal:
            if exchange.status is None:
                await refusal.response()(scope, receive, noted)
        except Exception:
            _LOG.exception("request %s failed", exchange.id)
            if exchange.status is None:
                await Refusal(500, "this is a defect of the service").response()(scope, receive, noted)
        finally:
            self._notice(exchange)
