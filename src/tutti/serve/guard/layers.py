"""All layers, one around the other."""

from __future__ import annotations

from pathlib import Path

from starlette.types import ASGIApp

from tutti.config.service import ServiceConfig
from tutti.serve.guard.bounds import Bounds
from tutti.serve.guard.exchange import Exchange
from tutti.serve.guard.keyring import Keyring, OneKey
from tutti.serve.guard.keys import Keys, Ring
from tutti.serve.guard.passing import Passing, Rules
from tutti.serve.guard.recorded import Recorded
from tutti.serve.guard.texts import Way


def guarded(app: ASGIApp, key: str, settings: ServiceConfig) -> ASGIApp:
    """`app` behind all that `settings` say. `key`: the only one, where there is no file of keys.

    Raises:
        TuttiError: something that the settings name is not there, or cannot be used.
    """
    rules = Rules(Way(), Way(), new_tokens=settings.limits.new_tokens)
    ring: Ring = OneKey(key)
    if settings.keys is not None:
        ring = Keyring(Path(settings.keys))
        ring.check()
    return Recorded(Keys(Bounds(Passing(app, rules), settings.limits), ring), _nothing)


def _nothing(exchange: Exchange) -> None:
    pass
