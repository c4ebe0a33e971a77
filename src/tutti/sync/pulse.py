"""Who has fallen silent: members keep a connection to each other on which ZeroMQ sends heartbeats.

Its threads send and answer them without the interpreter's lock, so a member that computes is never taken for dead; one
that was killed loses its connections at once, and one that is stopped or cut off misses its heartbeats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import zmq
from zmq.utils.monitor import recv_monitor_message

from tutti.sync.channel import caller, listener

_BEAT_MS = 100
#: Silent for so long, a member is given up. A machine that is only busy answers well before.
SILENCE_MS = 700


class Pulse:
    """This member's heartbeats. `on_lost(rank)` is called in a thread of its own when a watched member is gone."""

    def __init__(self, secret: bytes, host: str, on_lost: Callable[[int], None]) -> None:
        self._secret = secret
        self._on_lost = on_lost
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._listener = _beating(listener(self._context, zmq.ROUTER, secret))
        port = self._listener.bind_to_random_port("tcp://*")
        #: Where others find this member.
        self.address = f"tcp://{host}:{port}"
        self._round = 0
        self._ended = threading.Event()

    def watch(self, addresses: Mapping[int, str]) -> None:
        """From now on watch the members at `addresses`, by rank, and nobody else."""
        self.rest()
        self._ended = threading.Event()
        callers, monitors = [], {}
        for rank, address in addresses.items():
            socket = _beating(caller(self._context, zmq.DEALER, self._secret))
            socket.reconnect_ivl = -1  # whoever was lost comes back as a new member
            monitors[socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)] = rank
            socket.connect(address)
            callers.append(socket)
        self._thread = threading.Thread(
            target=self._listen, args=(callers, monitors, self._ended), name="pulse", daemon=True
        )
        self._thread.start()

    def rest(self) -> None:
        """Watch nobody."""
        self._ended.set()

    def close(self) -> None:
        """End; others will notice."""
        self.rest()
        self._listener.close()

    def _listen(
        self,
        callers: list[zmq.Socket[bytes]],
        monitors: dict[zmq.Socket[bytes], int],
        ended: threading.Event,
    ) -> None:
        poller = zmq.Poller()
        for monitor in monitors:
            poller.register(monitor, zmq.POLLIN)
        while not ended.is_set():
            for monitor, _ in poller.poll(_BEAT_MS):
                recv_monitor_message(monitor)
                poller.unregister(monitor)
                if not ended.is_set():
                    self._on_lost(monitors[monitor])
        for socket in callers:
            socket.disable_monitor()
            socket.close()


def _beating(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    socket.heartbeat_ivl = _BEAT_MS
    socket.heartbeat_timeout = SILENCE_MS
    return socket
