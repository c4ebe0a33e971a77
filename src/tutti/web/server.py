"""uvicorn, as it is run here: it ends quietly when it is told to, with everything answered that was begun."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tutti.web.slow import protocol_with

#: What was begun may take so long to be answered.
_DRAIN_SECONDS = 60


class _Server(uvicorn.Server):
    on_end: Callable[[], None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.on_end is not None:
            self.on_end()
        super().handle_exit(sig, frame)

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
    *,
    on_end: Callable[[], None] | None = None,
    with_logs: Callable[[logging.Logger], None] | None = None,
) -> None:
    """Answer at `listener` until SIGTERM or Ctrl-C. `certificate`, `private_key`: of TLS, if there is any.
    `read_seconds`: for the headers of a request to arrive. `on_end`: what ends answers that would not end.
    `with_logs`: what is done with what the server says of itself."""
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
    if with_logs is not None:
        with_logs(logging.getLogger("uvicorn"))
    server = _Server(config)
    server.on_end = on_end
    server.run(sockets=[listener])
