"""Questions to a `channel.listener` that answers each (REQ to REP), over a line that may break.

Whoever gives no answer in time is asked again over a fresh socket, for a REQ socket without an answer takes no other
question (ZeroMQ's "lazy pirate").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import zmq

from tutti.sync.channel import caller

_LOOK_MS = 100


class Line:
    """From one thread to the listener at `address` (tcp://HOST:PORT) that knows `secret`."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address, self._secret = address, secret
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def ask(self, frames: Sequence[bytes], patience: Callable[[], float]) -> list[bytes] | None:
        """The answer, or None where none came for so many seconds as `patience` says (asked again and again)."""
        if self._socket is None:
            self._socket = caller(self._context, zmq.REQ, self._secret)
            self._socket.connect(self._address)
        began, answer = time.monotonic(), None
        try:
            self._socket.send_multipart(list(frames))
            while answer is None and time.monotonic() - began < patience():
                if self._socket.poll(_LOOK_MS):
                    answer = self._socket.recv_multipart()
        finally:
            if answer is None:
                self._socket.close()
                self._socket = None
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._context.term()
