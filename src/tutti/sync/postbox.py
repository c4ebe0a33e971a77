"""One rank's way to the board: a thread that carries messages there and back, so that training never waits.

What cannot be delivered is dropped and counted: a message is worth something while it is new.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tutti.sync.asking import Line
from tutti.sync.board import Message

#: Pause between visits to the board.
_VISIT_SECONDS = 0.05
_ANSWER_SECONDS = 20.0
#: Messages that wait to be delivered; older ones are dropped.
_MOST_WAITING = 64
#: How long the last messages may take at the end.
_LAST_SECONDS = 3.0


class Postbox:
    """Of rank `rank` of group `group`. `post` and `collect` return at once.

    `sent_bytes`, `received_bytes`: payloads that were delivered. `lost`: messages that were not.
    """

    def __init__(self, port: int, secret: bytes, group: int, rank: int) -> None:
        self.sent_bytes = self.received_bytes = self.lost = 0
        self._port, self._secret = port, secret
        self._group, self._rank = group, rank
        self._leaving: deque[tuple[dict[str, Any], Callable[[], bytes]]] = deque()
        self._arrived: list[Message] = []
        self._after = 0
        self._lock = threading.Lock()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._carry, name="postbox", daemon=True)
        self._thread.start()

    def post(self, kind: str, number: int, keep: int, make: Callable[[], bytes]) -> None:
        """Put up what `make` returns (called by the thread) as message `number` of `kind`; the board keeps `keep`."""
        header = {"group": self._group, "rank": self._rank, "kind": kind, "number": number, "keep": keep}
        with self._lock:
            self._leaving.append((header, make))
            while len(self._leaving) > _MOST_WAITING:
                self._leaving.popleft()
                self.lost += 1
        self._wake.set()

    def collect(self) -> list[Message]:
        """What has arrived from other groups since this was last called, oldest first."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Deliver what is waiting, if the board takes it soon, and end."""
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout=3 * _LAST_SECONDS)

    # The thread ------------------------------------------------------------------------------------------------

    def _carry(self) -> None:
        self._line = Line(f"tcp://127.0.0.1:{self._port}", self._secret)
        while True:
            ending = self._ending.is_set()  # read first: what was posted before `close` is still delivered
            delivered = self._deliver()
            if ending:
                break
            if not (delivered and self._fetch()):
                self._wake.wait(_VISIT_SECONDS)
                self._wake.clear()
        self.lost += len(self._leaving)
        self._line.close()

    def _deliver(self) -> bool:
        """Carry everything that waits to the board; False: the board does not answer."""
        while True:
            with self._lock:
                if not self._leaving:
                    return True
                header, make = self._leaving.popleft()
            payload = make()
            if self._ask([b"put", json.dumps(header).encode(), payload]) is None:
                self.lost += 1
                return False
            self.sent_bytes += len(payload)

    def _fetch(self) -> bool:
        """Take what is new; whether there was anything."""
        asked = json.dumps({"group": self._group, "after": self._after}).encode()
        answer = self._ask([b"get", asked])
        if answer is None:
            return False
        found = [
            Message(**header, payload=payload)
            for header, payload in zip(json.loads(answer[0]), answer[1:], strict=True)
        ]
        if found:
            self._after = found[-1].serial
            with self._lock:
                self._arrived += found
                self.received_bytes += sum(len(message.payload) for message in found)
        return bool(found)

    def _ask(self, frames: list[bytes]) -> list[bytes] | None:
        return self._line.ask(frames, lambda: _LAST_SECONDS if self._ending.is_set() else _ANSWER_SECONDS)
