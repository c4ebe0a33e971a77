"""Waiting for an answer, as long as somebody waits for it with us."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from tutti.serve.asking import Asking, Failed, Late
from tutti.serve.engine import Full, Stopped
from tutti.serve.refusal import Refusal, late, overloaded, stopped
from tutti.serve.service import Service
from tutti.web.gone import until_gone

T = TypeVar("T")

#: Whoever waits so long is watched: hanging up ends it.
_WATCHED_SECONDS = 0.1


async def unless_gone(service: Service | Asking, asked: Coroutine[Any, Any, T], request: Request) -> T | None:
    """What comes of `asked`; None: nobody waits for it any more.

    Raises:
        Refusal: too many wait, or there is no answer.
    """
    asking = asyncio.ensure_future(asked)
    try:
        await asyncio.wait({asking}, timeout=_WATCHED_SECONDS)
        if not asking.done():
            left = asyncio.ensure_future(until_gone(request.receive))
            await asyncio.wait({asking, left}, return_when=asyncio.FIRST_COMPLETED)
            left.cancel()
        return asking.result() if asking.done() else None
    except Full as full:
        wait = max(1, math.ceil(service.engine.seconds_to_go)) if isinstance(service, Asking) else 1
        raise overloaded(wait) from full
    except Late as error:
        raise late() from error
    except Failed as failed:
        raise Refusal(500, "it could not be computed", code="engine_error") from failed
    except Stopped as error:
        raise stopped() from error
    finally:
        asking.cancel()
