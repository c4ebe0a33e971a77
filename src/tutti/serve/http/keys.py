"""Who may ask: nobody without a key, on any route but the two that say whether the service lives."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from tutti.serve.http.refusals import Refusal

#: What a load balancer asks, and learns nothing from.
OPEN = frozenset({"/health", "/ready"})


class Keys:
    """Stands before the application. `key`: the only one; it is kept as its hash."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._hash = _hashed(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no others
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.decode("latin-1").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(_hashed(key.strip()), self._hash):
            await self._app(scope, receive, send)
            return
        message = (
            "this key is not known"
            if given
            else "no API key was given: send it as `Authorization: Bearer KEY`"
        )
        await Refusal(401, message, code="invalid_api_key").response()(scope, receive, send)


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
