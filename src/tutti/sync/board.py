"""A notice board for groups: the newest messages of each, for whoever comes to read them.

It lives in the process that starts the groups and knows nothing of what is written on it. Nobody waits for anybody:
an author leaves a message and goes on, a reader takes what is new to it. A message stays until its author has put up
`keep` newer ones of its kind, so a reader that comes late, or comes back, finds what still matters and no more.

    put   {group, rank, kind, number, keep}, payload   →   (empty)
    get   {group, after}                               →   [{serial, group, rank, kind, number}, …], payload, …

`number` is the author's (its step), `serial` the board's: a reader asks for what came after the last one it has. An
answer holds about `_ANSWER_BYTES` at most; the reader asks again.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from tutti.sync.channel import listener

_ANSWER_BYTES = 64 << 20
#: How long the board takes to notice that it is to end.
_LOOK_MS = 100


@dataclass(frozen=True)
class Message:
    """What `rank` of `group` put up as its message `number` (its step) of a `kind`."""

    serial: int
    group: int
    rank: int
    kind: str
    number: int
    payload: bytes

    @property
    def header(self) -> dict[str, Any]:
        """All but the payload."""
        return {key: getattr(self, key) for key in ("serial", "group", "rank", "kind", "number")}


class Board:
    """Serves in a thread of its own, on this machine, those who know `secret`."""

    def __init__(self, secret: bytes) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = listener(self._context, zmq.REP, secret, most_bytes=None)
        self.port: int = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._messages: dict[tuple[int, int, str], deque[Message]] = {}
        self._serial = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="board", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take it down."""
        self._ending.set()
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        while not self._ending.is_set():
            if not self._socket.poll(_LOOK_MS):
                continue
            try:
                answer = self._answer(self._socket.recv_multipart())
            except (
                ValueError,
                KeyError,
                TypeError,
                IndexError,
            ):  # a reader sees that no list of messages came
                answer = [b"not understood"]
            self._socket.send_multipart(answer)
        self._socket.close()
        self._context.term()

    def _answer(self, frames: Sequence[bytes]) -> list[bytes]:
        verb, asked = frames[0], json.loads(frames[1])
        if verb == b"put":
            self._put(asked, frames[2])
            return [b""]
        return self._get(int(asked["group"]), int(asked["after"]))

    def _put(self, asked: dict[str, Any], payload: bytes) -> None:
        group, rank, kind, number = (asked[key] for key in ("group", "rank", "kind", "number"))
        self._serial += 1
        message = Message(self._serial, int(group), int(rank), str(kind), int(number), payload)
        kept = self._messages.setdefault((message.group, message.rank, message.kind), deque())
        kept.append(message)
        while len(kept) > int(asked["keep"]):
            kept.popleft()

    def _get(self, group: int, after: int) -> list[bytes]:
        new = [m for kept in self._messages.values() for m in kept if m.group != group and m.serial > after]
        new.sort(key=lambda message: message.serial)
        size = 0
        answer: list[Message] = []
        for message in new:
            size += len(message.payload)
            if answer and size > _ANSWER_BYTES:
                break
            answer.append(message)
        headers = json.dumps([message.header for message in answer]).encode()
        return [headers, *(message.payload for message in answer)]
