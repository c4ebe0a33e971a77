"""uvicorn, as it is run here: it ends quietly when it is told to, with everything answered that was begun."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from tutti.serve.guard.logs import redact_logs
from tutti.serve.guard.slow import protocol_with

#: What was begun may take so long to be answered.
_DRAIN_SECONDS = 60


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal drains, the second ends at once. (uvicorn's own raises it again when all is done: then the
        command would end as if it had been killed.)"""
        before = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    certificate: Path | None,
    private_key: Path | None,
    read_seconds: float,
) -> None:
    """Answer at `listener` until SIGTERM or Ctrl-C. `certificate`, `private_key`: of TLS, if there is any.
    `read_seconds`: for the headers of a request to arrive."""
    config = uvicorn.Config(
        app,
        http=protocol_with(read_seconds),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    redact_logs(logging.getLogger("uvicorn"))
    _Server(config).run(sockets=[listener])
