"""A link that carries so many bytes a second and no more, in user space: a proxy before whoever listens."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

#: Of sockets, so that what is on its way lies with the sender.
_BUFFER_BYTES = 1 << 17


class SlowLink:
    """Carries connections to `address` ("tcp://host:port"); `own` is where to connect instead. `rate`: bytes/s."""

    def __init__(self, address: str, rate: float) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._to, self._rate = (host, int(port)), rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                self.connections += 1
                for one in (near, far):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                for source, to in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, to), daemon=True).start()

    def _pump(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 14):
                to.sendall(content)
                time.sleep(len(content) / self._rate)
        for one in (source, to):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
