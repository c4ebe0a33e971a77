"""uvicorn, as it is run here: it ends quietly when it is told to, with everything answered that was begun."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tutti.web.leaving import Leaving
from tutti.web.slow import protocol_with

#: What was begun may take so long to be answered.
_DRAIN_SECONDS = 60
#: After SIGTERM new requests are still let in for so long, each as the last one of its connection, so that nobody sends
#: one down a connection that is being closed.
_FAREWELL_SECONDS = 1.0
#: Whoever is connected when the door closes, and has not asked yet, has so long to do it.
_FIRST_WORD_SECONDS = 0.5


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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, but whoever stood at the door is let in, and heard, before it closes for good: the system
        has told them that they are connected, and would hang up on them."""
        letting_in = [asyncio.ensure_future(self._let_in(client)) for client in _waiting(sockets or [])]
        for server in self.servers:
            server.close()
        connected: set[Any] = self.server_state.connections
        end = self._loop.time() + _FIRST_WORD_SECONDS
        while not self.force_exit and self._loop.time() < end:
            silent = any(connection.cycle is None for connection in connected)
            if not silent and all(task.done() for task in letting_in):
                break
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    async def _let_in(self, client: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        try:
            await self._loop.connect_accepted_socket(protocol, client, ssl=self.config.ssl)
        except OSError:  # who has gone again, or speaks no TLS
            client.close()


def _waiting(listeners: list[socket.socket]) -> Iterator[socket.socket]:
    """Those who are connected to `listeners`, which do not block, and were not let in yet."""
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                client, _ = listener.accept()
                client.setblocking(False)
                yield client


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
        # What is there by now stays: looking it through again and again for garbage held answers up for 0.3 s.
        gc.collect()
        gc.freeze()
        async with beside or nullcontext():
            await _Server(config, leaving, on_end).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(live())
