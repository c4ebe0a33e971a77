"""A service that is told to end says so before it closes its door: whoever sends it requests goes elsewhere in time."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Leaving:
    """Around an application. From `begun` on `/ready` says 503, and each answer is the last one of its connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.begun or scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def last(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if scope["path"] == "/ready":
            reason = {"status": "unavailable", "reason": "the service is about to end"}
            await JSONResponse(reason, status_code=503)(scope, receive, last)
        else:
            await self._app(scope, receive, last)
