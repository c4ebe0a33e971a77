"""The machine that started a run, as a guest sees it: what it says at its door, and whether it is still there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from tutti.core.address import bracketed
from tutti.core.errors import LaunchError
from tutti.sync.asking import Line

#: How long it may take to answer at first (it cannot say that the key is wrong), and later.
_FIRST_ANSWER_SECONDS = 20.0
_ANSWER_SECONDS = 15.0
_FAREWELL_SECONDS = 2.0
_PING_SECONDS = 2.0
_WAIT_SECONDS = 0.5
#: A piece of a file is asked for so often.
_ATTEMPTS = 4


class FirstMachine:
    """At `host`:`port`, for who has its `key`. Every question raises LaunchError where no good answer comes."""

    def __init__(self, host: str, port: int, key: bytes) -> None:
        self.address = f"{bracketed(host)}:{port}"
        self._host, self._port, self._key = host, port, key
        self._line = Line(f"tcp://{self.address}", key)
        self._guest = 0
        self._gone = ""

    def join(self, **who: Any) -> dict[str, Any]:
        """Come in; what the door offers (`door.py`)."""
        offered = self._ask(self._line, "join", lambda: _FIRST_ANSWER_SECONDS, **who)
        self._guest = int(offered["guest"])
        return offered

    def next_work(self, after: int) -> dict[str, Any]:
        """What is to be done after stage `after`; waits for it."""
        while True:
            work = self._ask(self._line, "work", lambda: _ANSWER_SECONDS, after=after)
            if "wait" not in work:
                return work
            time.sleep(_WAIT_SECONDS)

    def read(self, name: str, offset: int) -> bytes:
        """The next bytes of the file `name`."""
        for attempt in range(_ATTEMPTS):
            try:
                _, data = self._exchange(
                    self._line, "file", lambda: _ANSWER_SECONDS, name=name, offset=offset
                )
            except LaunchError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                if not data:
                    break
                return data
        raise LaunchError(
            f"{self.address} has no more of {name}", "its prepared text has changed: join again"
        )

    def tell_measured(self, events: list[dict[str, Any]]) -> None:
        """What this machine's workers measured."""
        self._ask(self._line, "measured", lambda: _ANSWER_SECONDS, events=events)

    def leave(self) -> None:
        """Give the places back, if somebody takes them."""
        with suppress(LaunchError):
            self._ask(self._line, "leave", lambda: _FAREWELL_SECONDS)

    def require(self) -> None:
        """Raises LaunchError when it has gone, or has given this machine up."""
        if self._gone:
            raise LaunchError(
                f"{self._gone}; this machine's replicas have ended",
                "once the run goes on there (with --resume), join it again",
            )

    @contextmanager
    def in_touch(self, on_gone: Callable[[], None], trains: Callable[[], bool]) -> Iterator[None]:
        """Say now and then that this machine is there. `on_gone` is called when the other is not, or gave it up; while
        nobody `trains` here yet, a line that was bad for a while is no reason to go."""
        over = threading.Event()

        def patience() -> float:
            return 0.0 if over.is_set() else _ANSWER_SECONDS

        def ping() -> None:
            with closing(Line(f"tcp://{self.address}", self._key)) as line:
                while not over.wait(_PING_SECONDS):
                    try:
                        if self._ask(line, "alive", patience)["known"]:
                            continue
                        self._gone = (
                            f"{self.address} has given this machine's places to others: it was cut off"
                        )
                    except LaunchError:
                        if over.is_set():
                            return
                        if not trains():
                            continue
                        self._gone = (
                            f"{self.address}, which started the run, was silent for {_ANSWER_SECONDS:.0f} s"
                        )
                    on_gone()
                    return

        thread = threading.Thread(target=ping, name="in touch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def own_address(self) -> str:
        """What others call this machine: the address that its packets to the first one come from."""
        kind, *_, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            own: str = probe.getsockname()[0]
        return own

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _ask(self, line: Line, verb: str, patience: Callable[[], float], **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._exchange(line, verb, patience, **fields)[0])
        return found

    def _exchange(self, line: Line, verb: str, patience: Callable[[], float], **fields: Any) -> list[bytes]:
        asked = {"verb": verb, "guest": self._guest, **fields}
        answer = line.ask([json.dumps(asked).encode()], patience)
        if answer is None:
            raise LaunchError(
                f"nobody at {self.address} answers to this key",
                "is the run there, with --listen, its port within reach, and the key its own?",
            )
        if answer[0] != b"{}":
            refused = json.loads(answer[0])
            if "refused" in refused:
                raise LaunchError(f"{self.address} refuses: {refused['refused']}", refused["hint"])
        return answer
