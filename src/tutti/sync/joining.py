"""How a member that comes late gets the run's state while the others go on.

At every roll call each member says how far its state is (a version: steps or rounds done) and whether it has one at
all. Those with the newest have the run's state. One of them copies it for each newcomer, which fetches the copy in the
background and meanwhile listens: it takes part in every exchange with nothing to give, and keeps what came out. When
the copy has arrived, what was kept is applied to it, and the newcomer is where everybody is. Nobody has waited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tutti.sync.handover import Lost
from tutti.sync.transport import Transport


class StateLost(Exception):
    """Every member that had the run's state is gone; it is in the last checkpoint."""


@dataclass(frozen=True)
class Standing:
    """A member's state: its version, whether it has it, and if not, whether it is being fetched."""

    version: int
    has: bool
    fetching: bool

    def row(self) -> list[int]:
        """As integers, for a roll call."""
        return [self.version, int(self.has), int(self.fetching)]

    @classmethod
    def of(cls, row: Sequence[int]) -> Standing:
        """Read `row()`."""
        return cls(int(row[0]), bool(row[1]), bool(row[2]))


class Joining:
    """One member's part. `give` returns the state as it is now, `take` becomes what somebody gave."""

    def __init__(self, transport: Transport, give: Callable[[], Any], take: Callable[[Any], None]) -> None:
        self._transport = transport
        self._give = give
        self._take = take
        self.version = 0
        #: Without the run's state: to listen only.
        self.behind = False
        #: The version of the state that is being fetched, and what came of the exchanges since.
        self.copied = 0
        self.missed: list[Any] = []
        self._fetch: Future[Any] | None = None

    @property
    def standing(self) -> Standing:
        """What to say at a roll call."""
        return Standing(self.version, not self.behind, self._fetch is not None and not self.failed)

    @property
    def failed(self) -> bool:
        """Whether what was being fetched cannot be had any more: another roll call is needed."""
        return self._fetch is not None and self._fetch.done() and self._fetch.exception() is not None

    def attend(self, roll: Sequence[Standing]) -> list[int]:
        """Read the roll call of all members, by rank. Returns who has the run's state, and sets about the handovers.

        Raises:
            StateLost: nobody has it.
        """
        newest = max((member.version for member in roll if member.has), default=None)
        if newest is None:
            raise StateLost("every replica that had the run's state is gone")
        current = [rank for rank, member in enumerate(roll) if member.has and member.version == newest]
        newcomers = [
            rank
            for rank, member in enumerate(roll)
            if rank not in current and not (member.fetching and member.version == newest)
        ]
        givers = [current[number % len(current)] for number in range(len(newcomers))]
        key = f"state {newest}"
        if self._transport.rank in givers:
            self._transport.offer(key, self._give())
        elif self._transport.elastic and not any(member.fetching for member in roll):
            self._transport.withdraw()  # as much memory as the whole state takes
        if self._transport.rank in newcomers:
            self.behind = True
            self.version = self.copied = newest
            self.missed = []
            self._fetch = self._transport.fetch(givers[newcomers.index(self._transport.rank)], key)
        return current

    def listen(self, what: Any = None) -> None:
        """Keep what came of an exchange that counted, until the state is there."""
        self.missed.append(what)
        self.version += 1

    def wait(self, seconds: float | None) -> bool:
        """Wait so long (None: to the end) for the state; whether it is there."""
        if self._fetch is None:
            return False
        try:
            self._fetch.result(seconds)
        except (TimeoutError, Lost):
            return False
        return True

    def receive(self) -> None:
        """Take the state, which is there."""
        assert self._fetch is not None
        self._take(self._fetch.result())
        self._fetch = None
        self.behind = False
