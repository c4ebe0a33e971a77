"""Clients that are slow, or endless, on purpose: whoever connects has to say what is wanted, or is hung up on."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: Of headers, before a request is all there: clients have a few hundred.
_MOST_HEAD_BYTES = 65536


def protocol_with(read_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, whichever it takes here, where the headers of a request have `read_seconds` to arrive."""
    usual: Any = (
        AutoHTTPProtocol  # httptools's where it is installed, else h11's: both say alike how far they are
    )

    class Impatient(usual):  # type: ignore[misc]
        """uvicorn itself waits for ever for the first request, and for the rest of any."""

        _waiting: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data)
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()
                self._head_bytes = 0
            elif self._head_bytes > _MOST_HEAD_BYTES:
                self.transport.close()
            else:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._waiting is None:
                self._waiting = self.loop.call_later(read_seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Impatient
