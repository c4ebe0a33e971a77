"""uvicorn, as it is run here: it ends quietly when it is told to, with everything answered that was begun."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tutti.web.leaving import Leaving
from tutti.web.slow import protocol_with

#: What was begun may take so long to be answered.
_DRAIN_SECONDS = 60
#: After SIGTERM new requests are still let in for so long, each as the last one of its connection, so that nobody sends
#: one down a connection that is being closed.
_FAREWELL_SECONDS = 1.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, leaving: Leaving, on_end: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._leaving, self._on_end = leaving, on_end

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal drains, the second ends at once. (uvicorn's own raises it again when all is done: then the
        command would end as if it had been killed.)"""
        self._loop = asyncio.get_running_loop()
        before = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._on_end is not None:
            self._on_end()
        if sig != signal.SIGTERM or self._leaving.begun or not self.started:
            super().handle_exit(sig, frame)
            return
        self._leaving.begun = True
        self._loop.call_soon_threadsafe(self._loop.call_later, _FAREWELL_SECONDS, self._close_the_door)

    def _close_the_door(self) -> None:
        self.should_exit = True


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    certificate: Path | None,
    private_key: Path | None,
    read_seconds: float,
    *,
    beside: AbstractAsyncContextManager[None] | None = None,
    on_end: Callable[[], None] | None = None,
    with_logs: Callable[[logging.Logger], None] | None = None,
) -> None:
    """Answer at `listener` until SIGTERM or Ctrl-C. `certificate`, `private_key`: of TLS, if there is any.
    `read_seconds`: for the headers of a request to arrive. `beside`: entered before the first request, and left after
    the last one. `on_end`: what ends answers that would not end. `with_logs`: what is done with what the server says
    of itself."""
    leaving = Leaving(app)
    config = uvicorn.Config(
        leaving,
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

    async def live() -> None:
        async with beside or nullcontext():
            await _Server(config, leaving, on_end).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(live())
