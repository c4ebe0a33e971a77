"""Members that come and go: a quorum (`membership`) that meets as a gloo group (`group`) and is watched (`pulse`).

A group lives until somebody is lost or wants to come in; steps between need no word with the lighthouse. Whoever
notices a loss severs its connections, so that nobody waits for the dead, and votes against what was being exchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from tutti.sync.channel import proof
from tutti.sync.group import Group
from tutti.sync.handover import Giver, fetch
from tutti.sync.levels import Arrangement, Levels, arrange
from tutti.sync.membership import Membership
from tutti.sync.pulse import Pulse
from tutti.sync.transport import LaterPhase, PeerLost, StaticTransport, Transport, Wait
from tutti.sync.within import Within

_STORE_TIMEOUT = timedelta(seconds=10)


class ElasticTransport(Transport):
    """One part of this replica and its peers in the replicas that are alive."""

    elastic = True

    def __init__(
        self,
        *,
        lighthouse: str,
        store: tuple[str, int],
        replica: int,
        incarnation: int,
        part: int,
        parts: int,
        inside: dist.ProcessGroup | None,
        host: str,
        secret: bytes,
        say: Callable[[str], None],
        machine: str | None = None,
    ) -> None:
        """`store`: where members of a quorum find each other; the launcher's, as is the `lighthouse`. `host`: what
        others call this one. `incarnation`: how often this replica was started. `say`: told of strangers.
        `machine`: this member's, where sums are to be made in two levels (all members give it, or none)."""
        super().__init__()
        self._store_address = store
        self._part = part
        self._machine = machine
        self._group: Group | None = None
        self._level_groups: list[Group] = []
        self._name = ""
        self._quorum: int | None = None
        self._broken = False  # somebody was lost: no exchange can succeed any more
        self._lost: set[int] = set()  # who, as far as that is known
        self._failed = False  # an exchange did fail
        self._fresh = False
        self._later = False  # the others are in a later phase than this member
        self._has_met = False  # with the present members, but nothing has come of it
        self._meetings = 0
        self._host = host
        self._secret = secret
        self._pulse = Pulse(secret, host, self._on_lost)
        self._giver = Giver(secret, host)
        self._givers: list[str] = []
        self._start_membership = partial(
            Membership,
            lighthouse=lighthouse,
            name=f"{replica:05}.{incarnation}",
            part=part,
            parts=parts,
            inside=inside,
            host=host,
            secret=secret,
            say=say,
        )
        # Whoever has a heartbeat is waited for, so that begins when this member is ready to meet.
        self._membership: Membership | None = None

    @property
    def rank(self) -> int:
        return 0 if self._group is None else self._group.rank

    @property
    def size(self) -> int:
        return 1 if self._group is None else self._group.size

    @property
    def knocked(self) -> bool:
        return self._membership is not None and self._membership.knocked

    @property
    def broken(self) -> bool:
        return self._broken

    @property
    def lost(self) -> frozenset[int]:
        return frozenset(self._lost)

    def announce(self) -> None:
        self._alive()

    def meet(self) -> bool:
        membership = self._alive()
        self._failed = False
        if self._has_met:
            self._has_met = False
            return True
        while True:
            quorum = membership.agree(self._meetings, fresh=self._fresh or self._broken)
            self._meetings += 1
            if quorum.number == self._quorum:
                if not self._broken:
                    return False
                continue  # it broke while this member asked
            self._fresh = True  # until it stands
            self._leave_group()
            if self._join(quorum.number, quorum.rank, len(quorum.members)):
                break
        self._quorum = quorum.number
        self._fresh = False
        if self._later:
            self._has_met = True
            raise LaterPhase
        return True

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        return self._everybody().start_all_reduce(tensor)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        return self._everybody().all_gather(tensor)

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        return self._everybody().all_to_all(outgoing, incoming, largest)

    def start_send(self, tensor: Tensor, to: int) -> Wait:
        self.meter.message(tensor.nbytes)
        return self._between_two(lambda group: group.send(tensor, to))

    def start_receive(self, tensor: Tensor, source: int) -> Wait:
        return self._between_two(lambda group: group.receive(tensor, source))

    def commit(self, *, good: bool = True) -> bool:
        assert self._membership is not None
        # Who was lost after the last exchange has no part in whether that succeeded.
        good = self._membership.vote(good and not self._failed, self._meetings)
        self._failed = False
        if not good:
            self._break()  # it may have been another part's exchange that failed: this part's peers must know
            self._fresh = True
        return good

    def offer(self, key: str, state: Any) -> None:
        self._giver.offer(key, state)

    def withdraw(self) -> None:
        self._giver.withdraw()

    def fetch(self, rank: int, key: str) -> Future[Any]:
        return fetch(self._secret, self._givers[rank], key)

    def part(self) -> None:
        with contextlib.suppress(PeerLost):
            self.all_gather(torch.zeros(1))

    def close(self) -> None:
        self._giver.close()
        self._pulse.close()
        if self._membership is not None:
            self._membership.close()

    def _alive(self) -> Membership:
        if self._membership is None:
            self._membership = self._start_membership(store=self._connect())
        return self._membership

    # The group -----------------------------------------------------------------------------------------------

    def _join(self, number: int, rank: int, size: int) -> bool:
        """Meet the other members of quorum `number`; False: somebody was lost again meanwhile."""
        # A stranger who reached the store must neither find nor spoil what members tell each other there.
        name = f"{proof(self._secret, f'quorum {number}')}/{self._part}"
        try:
            store = self._connect()
            store.set(
                f"{name}/addresses-{rank}",
                f"{self._pulse.address} {self._giver.address} {self.phase} {self._machine or '-'}",
            )
            group = Group(store, name, rank, size, self._host)
            found = [store.get(f"{name}/addresses-{member}").decode().split() for member in range(size)]
            machines = [machine for *_, machine in found]
            later = any(int(phase) > self.phase for _, _, phase, _ in found)
            self._form_levels(store, name, rank, arrange(machines, rank) if self._machine else None)
        except (RuntimeError, OSError, ValueError):  # ValueError: what stands there is of no member
            return False
        self._group = group
        self._broken = False
        self._lost = set()
        self._givers = [giver for _, giver, *_ in found]
        self._later = later
        self._name = name
        self._pulse.watch(name, {member: pulse for member, (pulse, *_) in enumerate(found) if member != rank})
        return True

    def _form_levels(self, store: Store, name: str, rank: int, place: Arrangement | None) -> None:
        self.levels = None
        if place is None:
            return

        def among(kind: str, members: tuple[int, ...]) -> Transport:
            if len(members) == 1:
                return StaticTransport(None)
            level = f"{name}/{kind}-{members[0]}"
            group = Group(store, level, members.index(rank), len(members), self._host)
            self._level_groups.append(group)
            return self._within(group)

        inside = among("inside", place.inside)
        self.levels = Levels(inside, among("lane", place.lane) if place.lane else None, place.lanes)

    def _leave_group(self) -> None:
        self._pulse.give_up()  # who is no member any more may still wait for the others
        self._pulse.rest()
        self._sever()
        # Destructors wait for exchanges, which have failed by now.
        self._group, self._level_groups, self.levels = None, [], None

    def _sever(self) -> None:
        for group in [self._group, *self._level_groups]:
            if group is not None:
                group.sever()

    def _everybody(self) -> Within:
        if self._group is None:
            self._failed = True
            raise PeerLost("the group of this round is gone")
        return self._within(self._group)

    def _within(self, group: Group) -> Within:
        return Within(group, self._attempt, self.meter)

    def _between_two(self, start: Callable[[Group], Wait]) -> Wait:
        """An exchange that concerns two members. When it fails, what all of them do together may still count."""

        def attempt(exchange: Callable[[], Any]) -> Any:
            if self._broken or self._group is None:
                raise PeerLost("a member was lost")
            try:
                return exchange()
            except RuntimeError as error:
                self._break()
                raise PeerLost(str(error)) from error

        def begin() -> Wait:
            assert self._group is not None
            return start(self._group)

        wait = attempt(begin)
        return lambda: attempt(wait)

    def _attempt(self, exchange: Callable[[], Any], begun: bool) -> Any:
        """Do `exchange`; one that has `begun` is waited for however it ends: it holds memory."""
        if self._broken and not begun:
            self._failed = True
            raise PeerLost("the group of this round is broken")
        try:
            return exchange()
        except RuntimeError as error:  # gloo's for whatever befell it
            self._failed = True
            self._break()
            raise PeerLost(str(error)) from error

    def _break(self) -> None:
        if not self._broken:
            self._pulse.give_up()
        self._broken = True
        self._sever()

    def _on_lost(self, group: str, member: int | None) -> None:
        if group == self._name:
            if member is not None:
                self._lost.add(member)
            with contextlib.suppress(OSError):
                self._break()

    def _connect(self) -> Store:
        """The launcher's store, by a connection of one's own: it may have been lost with a link."""
        host, port = self._store_address
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
