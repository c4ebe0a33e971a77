"""Which replicas are alive, by torchft's lighthouse and manager server.

The lighthouse collects heartbeats, which the manager server of each replica sends from threads of its own, and answers
all who ask with one quorum. Consensus is nothing to write at home. torchft's Python `Manager` is not used: it heals
within the quorum while everybody waits, averages over participants, and turns errors into zeros.

A name in a quorum carries a proof that its bearer knows the run's secret; names without are passed over, by all
members alike.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]
from torchft.coordination import ManagerClient, ManagerServer

from tutti.core.address import is_loopback
from tutti.core.errors import LaunchError
from tutti.core.live import waiting_for_others
from tutti.sync.channel import proof, proves
from tutti.sync.transport import PeerLost

_HEARTBEAT = timedelta(milliseconds=100)
_CONNECT_TIMEOUT = timedelta(seconds=20)
#: One question to the lighthouse; it is asked again and again, for others may be in the middle of a long round.
_QUESTION_TIMEOUT = timedelta(seconds=30)
#: A replica whose questions fail for so long (the lighthouse is gone, and with it the launcher) gives up.
_PATIENCE_SECONDS = 6 * 3600
_KNOCK_SECONDS = 0.25
_KNOCKS = "knocks"


@dataclass(frozen=True)
class Quorum:
    """`number` changes with the members, and when one of them asks for a fresh start."""

    number: int
    members: tuple[str, ...]
    rank: int


class Membership:
    """One part of one replica. `name` sorts replicas by number; all parts of a replica make the same calls."""

    def __init__(
        self,
        *,
        lighthouse: str,
        store: Store,
        name: str,
        part: int,
        parts: int,
        inside: dist.ProcessGroup | None,
        host: str,
        secret: bytes,
        say: Callable[[str], None],
    ) -> None:
        for logger in ("torchft", "torchft.manager"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        self._name = f"{name}:{proof(secret, name)}"
        self._part, self._inside, self._secret, self._say = part, inside, secret, say
        self._store = store
        self._failures = 0
        self._strangers: set[str] = set()
        address: list[Any] = [None]
        if part == 0:
            self._server = ManagerServer(
                replica_id=self._name,
                lighthouse_addr=lighthouse,
                hostname=host,
                bind="127.0.0.1:0" if is_loopback(host) else "[::]:0",
                store_addr="",  # members meet at the launcher's store, which no member's death takes away
                world_size=parts,
                heartbeat_interval=_HEARTBEAT,
                connect_timeout=_CONNECT_TIMEOUT,
                quorum_retries=0,
            )
            address = [self._server.address()]
        if inside is not None:
            dist.broadcast_object_list(address, group=inside, group_src=0)
        self._client = ManagerClient(address[0], connect_timeout=_CONNECT_TIMEOUT)
        self._knocks = self._answered_knocks = 0
        self._closed = threading.Event()
        if part == 0:
            threading.Thread(target=self._hear_knocks, daemon=True, name="knocks").start()

    def agree(self, step: int, *, fresh: bool) -> Quorum:
        """Wait for everybody who is alive; `fresh`: what held until now is broken, also if nobody is gone."""
        self._failures = self._failures + 1 if fresh else 0
        answered = threading.Event()
        if self._part == 0:
            threading.Thread(target=self._knock, args=(answered,), daemon=True, name="knock").start()
        try:
            with waiting_for_others():
                result = self._ask(step)
        finally:
            answered.set()
        self._answered_knocks = self._knocks
        members = _newest(name for name in result.replica_ids if self._knows(name))
        if self._name not in members:
            raise LaunchError(
                "another process has this replica's place: this one was silent for too long",
                "join the run again",
            )
        return Quorum(result.quorum_id, members, members.index(self._name))

    @property
    def knocked(self) -> bool:
        """Whether somebody has asked to be let in since the last quorum; the first part of a replica knows."""
        return self._knocks != self._answered_knocks

    def vote(self, good: bool, step: int) -> bool:
        """Whether it was good for all parts of this replica. Raises PeerLost where one of them is gone."""
        if self._inside is None:
            return good
        try:
            return bool(self._client.should_commit(self._part, step, good, timeout=_QUESTION_TIMEOUT))
        except (
            Exception
        ) as error:  # torchft raises whatever its runtime says; a part that was killed never votes
            raise PeerLost(f"not all parts of this replica voted: {error}") from error

    def close(self) -> None:
        """Leave: heartbeats end."""
        self._closed.set()
        if self._part == 0:
            self._server.shutdown()

    def _ask(self, step: int) -> Any:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._client._quorum(
                    group_rank=self._part,
                    step=step,
                    checkpoint_metadata="",
                    shrink_only=False,
                    timeout=_QUESTION_TIMEOUT,
                    init_sync=False,
                    commit_failures=self._failures,
                )
            except (
                Exception
            ) as error:  # torchft raises whatever its runtime says: time-outs, lost connections
                if time.monotonic() > deadline:
                    raise
                if not isinstance(error, TimeoutError):
                    time.sleep(0.2)

    def _knock(self, answered: threading.Event) -> None:
        """Ask to be let in, once the question has surely arrived; members look up only when somebody knocks."""
        while not answered.wait(_KNOCK_SECONDS):
            with contextlib.suppress(RuntimeError):  # cut off; the question fails as well and is asked again
                self._store.add(_KNOCKS, 1)

    def _hear_knocks(self) -> None:
        while not self._closed.wait(_KNOCK_SECONDS):
            with contextlib.suppress(RuntimeError):
                self._knocks = int(self._store.add(_KNOCKS, 0))

    def _knows(self, name: str) -> bool:
        claim, _, given = name.rpartition(":")
        if proves(self._secret, claim, given):
            return True
        if name not in self._strangers:
            self._strangers.add(name)
            self._say(f"a replica that does not know this run's secret was refused: {claim or name}")
        return False


def _newest(names: Iterable[str]) -> tuple[str, ...]:
    """Of several names with one replica's number, that of the highest incarnation; in the order of replicas.

    A machine that slept while its place was given to another wakes up as a member, until it is told.
    """
    newest: dict[int, tuple[int, str]] = {}
    for name in names:
        replica, incarnation = map(int, name.partition(":")[0].split("."))
        newest[replica] = max(newest.get(replica, (-1, "")), (incarnation, name))
    return tuple(name for _, (_, name) in sorted(newest.items()))
