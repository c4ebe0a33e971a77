"""A worker: the ordinary service without a guard, at a socket that only its user can reach.

    python -m tutti.serve.gateway.work < order        (see `order`; what it says goes to standard output)

It ends when its input ends, which the gateway closes when nothing is in flight any more; so no worker outlives a
gateway that was killed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tutti.core.errors import TuttiError
from tutti.serve.answering import Answering
from tutti.serve.asking import Asking
from tutti.serve.gateway.order import HOPELESS, VITALS, Order
from tutti.serve.http import make_open_app
from tutti.serve.load import load_any
from tutti.serve.make import make_answering, make_service
from tutti.serve.release.content import require_unchanged
from tutti.serve.service import Service

#: The gateway closes idle connections first, so none is closed while a request is on its way.
_KEPT_SECONDS = 3600


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the gateway, which says what its workers do."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield


def main() -> None:
    """Until the input ends."""
    order = Order.read(sys.stdin.readline())
    try:
        if order.version is not None:
            require_unchanged(order.version)
        service = make_service(load_any(order.place), order.settings, _say)
        answering = make_answering(service, order.settings, _say)
    except TuttiError as error:
        _say(f"error: {error}")
        sys.exit(HOPELESS)
    config = uvicorn.Config(
        _with_vitals(make_open_app(service, answering), service, answering),
        uds=str(order.socket),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEPT_SECONDS,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    threading.Thread(target=_until_orphaned, args=(server,), daemon=True).start()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve())
    service.close()


def _until_orphaned(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


def _with_vitals(app: ASGIApp, service: Service | Asking, answering: Answering | None) -> ASGIApp:
    trial = (service if answering is None else answering).trial

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != VITALS:
            await app(scope, receive, send)
            return
        served, waiting = service.engine.load
        told = JSONResponse(
            {
                "problem": service.problem,
                "stopped": service.engine.stopped,
                "served": served,
                "waiting": waiting,
                "trial": trial,
            }
        )
        await told(scope, receive, send)

    return answered


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
