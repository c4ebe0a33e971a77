"""Who may ask: nobody without a key, on any route but the two that say whether the service lives."""

from __future__ import annotations

import logging
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.core.errors import ConfigError
from tutti.serve.guard.exchange import exchange_of
from tutti.serve.guard.keyring import Key
from tutti.serve.guard.quotas import Quotas
from tutti.serve.guard.scopes import OPEN, scope_of
from tutti.serve.refusal import Refusal

_LOG = logging.getLogger("uvicorn.error")


class Ring(Protocol):
    """Where keys are looked up."""

    def find(self, given: str) -> Key | None:
        """The key that was `given`, if it is good. Raises ConfigError where that cannot be known."""


class Keys:
    """Lets those pass whose key is in `ring`, may go there, and has something left."""

    def __init__(self, app: ASGIApp, ring: Ring) -> None:
        self._app, self._ring = app, ring
        self._quotas = Quotas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        exchange, key = exchange_of(scope), self._key_of(scope)
        exchange.key = key.name
        needed = scope_of(scope["path"])
        if not key.allows(needed):
            raise Refusal(
                403, f"this key may not do that: it lacks the scope '{needed}'", code="insufficient_scope"
            )
        told = self._quotas.admit(key)

        charged = 0

        def charge() -> None:
            nonlocal charged
            new = exchange.prompt_tokens + exchange.new_tokens - charged
            if new > 0:
                self._quotas.charge(key, new)
                charged += new

        async def with_quota(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            elif exchange.prompt_tokens:  # counted, so that it counts before the client can ask again
                charge()
            await send(message)

        try:
            await self._app(scope, receive, with_quota)
        except Refusal as refusal:
            refusal.headers = told | refusal.headers
            raise
        finally:
            charge()

    def _key_of(self, scope: Scope) -> Key:
        """Whose request it is. Raises Refusal."""
        given = Headers(scope=scope).get("authorization", "")
        kind, _, key = given.partition(" ")
        if not given:
            message = "no API key was given: send it as `Authorization: Bearer KEY`"
            raise Refusal(401, message, code="invalid_api_key")
        try:
            found = self._ring.find(key.strip()) if kind.lower() == "bearer" else None
        except ConfigError as error:  # nobody can be known, so nobody passes
            _LOG.error("nobody is let in: %s", error)
            raise Refusal(503, "keys cannot be looked up now", code="keys_unavailable") from error
        if found is None:
            raise Refusal(401, "this key is not known, or has run out", code="invalid_api_key")
        return found
