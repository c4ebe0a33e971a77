"""Who has fallen silent: members keep a connection to each other on which ZeroMQ sends heartbeats.

Its threads send and answer them without the interpreter's lock, so a member that computes is never taken for dead; one
that was killed loses its connections at once, and one that is stopped or cut off misses its heartbeats.

Whoever gives the group up for another reason says so to all: gloo may leave others waiting for what will never come.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import zmq
from zmq.utils.monitor import recv_monitor_message

from tutti.core.address import bracketed
from tutti.sync.channel import caller, listener

_BEAT_MS = 100
_POLL_MS = 50
#: Silent for so long, a member is given up. A machine that is only busy answers well before.
SILENCE_MS = 700
#: Also a member that was gone before it could be connected to.
_GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@dataclass
class _Watch:
    """The members of one group, by the sockets that lead to them, and the monitors of these."""

    group: str = ""
    callers: list[zmq.Socket[bytes]] = field(default_factory=list)
    monitors: dict[zmq.Socket[bytes], int] = field(default_factory=dict)


class Pulse:
    """This member's heartbeats. `on_lost(group, member)` is called in a thread of its own when that member of the group
    that is watched is gone, or (None) one says that the group is."""

    def __init__(self, secret: bytes, host: str, on_lost: Callable[[str, int | None], None]) -> None:
        self._secret = secret
        self._on_lost = on_lost
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._listener = _beating(listener(self._context, zmq.ROUTER, secret))
        port = self._listener.bind_to_random_port("tcp://*")
        #: Where others find this member.
        self.address = f"tcp://{bracketed(host)}:{port}"
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._watch = _Watch()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def watch(self, group: str, addresses: Mapping[int, str]) -> None:
        """From now on watch the members of `group` at `addresses`, and nobody else."""
        self._orders.put(lambda: self._begin(group, dict(addresses)))

    def rest(self) -> None:
        """Watch nobody."""
        self._orders.put(self._end)

    def give_up(self) -> None:
        """Tell the others that their group with this member is no more."""
        self._orders.put(self._tell)

    def close(self) -> None:
        """End; others will notice."""
        self._closed.set()

    # On the thread, which alone touches sockets ------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed.is_set():
            while not self._orders.empty():
                self._orders.get()()
            poller = zmq.Poller()
            for socket in (self._listener, *self._watch.monitors):
                poller.register(socket, zmq.POLLIN)
            for socket, _ in poller.poll(_POLL_MS):
                if socket is self._listener:
                    _, group = socket.recv_multipart()
                    if group.decode() == self._watch.group:
                        self._on_lost(self._watch.group, None)
                else:
                    recv_monitor_message(socket)
                    self._on_lost(self._watch.group, self._watch.monitors.pop(socket))
        self._end()
        self._listener.close()

    def _begin(self, group: str, addresses: Mapping[int, str]) -> None:
        self._end()
        self._watch = _Watch(group)
        for member, address in addresses.items():
            socket = _beating(caller(self._context, zmq.DEALER, self._secret))
            socket.reconnect_ivl = -1  # whoever was lost comes back as a new member
            socket.handshake_ivl = SILENCE_MS
            self._watch.monitors[socket.get_monitor_socket(_GONE)] = member
            socket.connect(address)
            self._watch.callers.append(socket)

    def _end(self) -> None:
        for socket in self._watch.callers:
            socket.disable_monitor()
            socket.close(linger=100)
        self._watch = _Watch()

    def _tell(self) -> None:
        for socket in self._watch.callers:
            socket.send(self._watch.group.encode(), zmq.NOBLOCK)


def _beating(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    socket.heartbeat_ivl = _BEAT_MS
    socket.heartbeat_timeout = SILENCE_MS
    return socket
