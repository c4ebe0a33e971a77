"""One rank's connection to the server: ask, and wait for the answer as long as the server lives.

ZeroMQ connects again by itself when the server has died and another one listens at its address. What was lost with the
old one is found out by asking ("waiting"): the new one does not know us.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import zmq
from torch import Tensor

from tutti.core import LaunchError
from tutti.sync.channel import caller, listener
from tutti.sync.server.host import HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS
from tutti.sync.server.messages import Message, frames_of
from tutti.sync.server.register import member_name
from tutti.sync.transport import ByteMeter, PeerLost

#: So often the server is asked whether it has what was sent. It is given up after so long without a word: a frozen one
#: is killed before that, and followed by another (`watch.kill_after_seconds`).
_ASK_MS, _SILENT_SECONDS = 1000, 600.0


@dataclass(frozen=True)
class ServerAddress:
    """Where the server listens, and what makes it listen to us."""

    address: str
    secret: bytes = field(repr=False)


class Unknown(Exception):
    """The server does not know this replica: it was restarted, or took the replica for dead."""


def listen(context: zmq.Context[zmq.Socket[bytes]], address: str, secret: bytes) -> zmq.Socket[bytes]:
    """The server's end. Raises zmq.ZMQError where the address is taken."""
    socket = listener(context, zmq.ROUTER, secret, most_bytes=None)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.set_hwm(0)  # whoever computes does not read; a probe is no reason to stop
    try:
        socket.bind(address)
    except zmq.ZMQError:
        socket.close()
        raise
    return socket


class Link:
    """Part `part` of a replica, at the server. `meter` counts payloads, in both directions."""

    def __init__(self, server: ServerAddress, replica: int, incarnation: int, part: int) -> None:
        self.meter = ByteMeter()
        self._who: dict[str, Any] = {"replica": replica, "incarnation": incarnation, "part": part}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = caller(self._context, zmq.DEALER, server.secret)
        self._socket.setsockopt(zmq.IDENTITY, f"{member_name(replica, incarnation)}/{part}".encode())
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        # Our own beats reach the server also while what it asks us is queued behind megabytes that it sends us.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(1000 * _SILENT_SECONDS))
        self._socket.set_hwm(0)
        self._socket.connect(server.address)
        self._address = server.address
        self._serial = 0

    def ask(self, kind: str, payload: Tensor | bytes = b"", **fields: Any) -> Message:
        """Say `kind` and return the answer.

        Raises:
            Unknown: the server does not know us (any more).
            PeerLost: there is no server, or it has lost another rank of this replica.
            LaunchError: the server refuses us.
        """
        self._serial += 1
        return self._await(kind, payload, fields)

    def answer(self, kind: str, payload: bytes, **fields: Any) -> Message:
        """What the server asked for instead of answering, and then its answer."""
        return self._await(kind, payload, fields)

    def close(self) -> None:
        """Say goodbye."""
        self._socket.send_multipart(frames_of("leave", serial=0, **self._who))
        self._context.destroy(linger=1000)

    def _await(self, kind: str, payload: Tensor | bytes, fields: dict[str, Any]) -> Message:
        request = frames_of(kind, payload, serial=self._serial, **self._who, **fields)
        self._send(request)
        heard = asked = time.monotonic()
        while True:
            if self._socket.poll(_ASK_MS):
                heard = time.monotonic()
                message = Message.of(self._socket.recv_multipart())
                if message is not None and self._is_answer(message, request):
                    self.meter.sent += len(message.payload)
                    return message
            if time.monotonic() - heard > _SILENT_SECONDS:
                raise PeerLost(f"the server at {self._address} has not answered for {_SILENT_SECONDS:.0f} s")
            if time.monotonic() - asked > _ASK_MS / 1000:
                asked = time.monotonic()
                self._socket.send_multipart(
                    frames_of("waiting", after=kind, serial=self._serial, **self._who)
                )

    def _is_answer(self, message: Message, request: list[Any]) -> bool:
        fields = message.fields
        if message.kind == "again" and fields["serial"] == self._serial:
            self._send(request)
        elif message.kind == "join":
            raise Unknown
        elif message.kind == "refuse" and fields.get("lost"):
            raise PeerLost(fields["reason"])
        elif message.kind == "refuse":
            raise LaunchError(
                f"the server refuses this replica: {fields['reason']}",
                "start all replicas with the same configuration",
            )
        return message.kind in ("give", "go", "state") and fields["serial"] == self._serial

    def _send(self, request: list[Any]) -> None:
        self._socket.send_multipart(request)
        self.meter.sent += sum(len(frame) for frame in request[1:])
