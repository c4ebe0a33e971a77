"""What carries tensors between replicas: the peers that hold the same part of the model.

A policy sees only this: who is alive, sums and gathers, and whether what was just exchanged counts
(`commit`). With fixed membership the answers are trivial; `elastic.py` gives the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tutti.sync.levels import Levels, arrange
from tutti.sync.swap import swap


@dataclass
class ByteMeter:
    """Bytes that this rank sent to its peers, by the cost of the collective that carried them.

    Ring all-reduce over n members sends 2(n - 1)/n of the buffer per member, a ring all-gather n - 1 times
    the member's part (Patarasuk and Yuan 2009); gloo and NCCL use these for buffers that are worth counting.
    """

    sent: int = 0

    def all_reduce(self, payload_bytes: int, members: int) -> None:
        """Count one all-reduce of a buffer of `payload_bytes`."""
        self.sent += 2 * (members - 1) * payload_bytes // members

    def all_gather(self, payload_bytes: int, members: int) -> None:
        """Count one all-gather to which this rank gives `payload_bytes`."""
        self.sent += (members - 1) * payload_bytes

    def message(self, payload_bytes: int) -> None:
        """Count what goes out to one member."""
        self.sent += payload_bytes

    def all_to_all(self, outgoing: Sequence[Tensor]) -> None:
        """Count what goes out to others (a member's own place is empty)."""
        self.sent += sum(tensor.nbytes for tensor in outgoing)


class PeerLost(Exception):
    """A member died or fell silent in the middle of an exchange; nothing of it counts."""


class LaterPhase(Exception):
    """The others are in a later phase of the run. The next `meet` is over already; this member goes on from there."""


#: Waits until an exchange has ended.
Wait = Callable[[], None]


class Transport(ABC):
    """Exchange among the live members. All members make the same calls in the same order."""

    def __init__(self) -> None:
        self.meter = ByteMeter()

    @property
    @abstractmethod
    def rank(self) -> int:
        """This member's number among the live ones; 0 leads (evaluates, saves)."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many members are alive."""

    @abstractmethod
    def start_all_reduce(self, tensor: Tensor) -> Wait:
        """Begin summing `tensor` over the members in place. Starting or waiting may raise PeerLost."""

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The `tensor` of every member, in the order of their ranks. May raise PeerLost."""

    @abstractmethod
    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        """Give `outgoing[i]` (uint8 [n], on the CPU) to member i, and get `incoming[i]` bytes from it. `largest`: bytes
        of the most that is given to anybody, where all members know it: then it goes in pieces (`swap`). May raise
        PeerLost."""

    def start_send(self, tensor: Tensor, to: int) -> Wait:
        """Begin giving `tensor` (uint8 [n], on the CPU) to member `to`, who calls `start_receive`. Starting or waiting
        may raise PeerLost; exchanges of all members together may still count."""
        raise NotImplementedError

    def start_receive(self, tensor: Tensor, source: int) -> Wait:
        """Begin filling `tensor` (uint8 [n], on the CPU) with what member `source` sends; likewise."""
        raise NotImplementedError

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum `tensor` over the members in place."""
        self.start_all_reduce(tensor)()

    #: Where several members share a machine and there are several machines.
    levels: Levels | None = None

    #: Whether members come and go. Where they do not, the rest of this class has nothing to do.
    elastic = False
    #: What members tell of themselves when they meet: which phase of the run they are in.
    phase = 0

    @property
    def knocked(self) -> bool:
        """Whether somebody wants to come in."""
        return False

    @property
    def lost(self) -> frozenset[int]:
        """Ranks of members of the present group that are gone or silent, as far as this one has noticed."""
        return frozenset()

    @property
    def broken(self) -> bool:
        """Whether a member was lost since the last meeting, so that no exchange can succeed any more."""
        return False

    def announce(self) -> None:  # noqa: B027
        """Be known as alive, so that the others wait for this member at the next meeting."""

    def meet(self) -> bool:
        """Agree on who is alive. True when these are others than at the last meeting."""
        return False

    def commit(self, *, good: bool = True) -> bool:
        """Whether all parts of this replica got through since the last meeting or commit, and found it `good`; False:
        do it again with those who are left."""
        return True

    def offer(self, key: str, state: Any) -> None:
        """Copy `state` and have it ready for other members under `key`."""
        raise NotImplementedError

    def withdraw(self) -> None:
        """Let go of what was offered: nobody fetches it any more."""
        raise NotImplementedError

    def fetch(self, rank: int, key: str) -> Future[Any]:
        """What member `rank` offers under `key`, fetched in the background."""
        raise NotImplementedError

    def part(self) -> None:  # noqa: B027
        """Wait until everybody has what was exchanged last: who leaves breaks the others' exchanges off."""

    def close(self) -> None:  # noqa: B027 - only transports with servers of their own have anything to close
        """Leave."""


class StaticTransport(Transport):
    """Fixed members: one torch process group (None: this member is alone)."""

    def __init__(self, group: dist.ProcessGroup | None, *, machine: str | None = None) -> None:
        """`machine`: this member's, where sums are to be made in two levels (all members give it, or none); empty where
        this member's back end has better ways to sum."""
        super().__init__()
        self._group = group
        if machine is not None and group is not None:
            self.levels = self._form_levels(group, machine)

    @property
    def rank(self) -> int:
        return 0 if self._group is None else self._group.rank()

    @property
    def size(self) -> int:
        return 1 if self._group is None else self._group.size()

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group, for lowerings that hand the work to torch."""
        return self._group

    def _form_levels(self, group: dist.ProcessGroup, machine: str) -> Levels | None:
        machines: list[str] = [""] * group.size()
        dist.all_gather_object(machines, machine, group=group)
        place = arrange(machines, group.rank()) if all(machines) else None
        if place is None:
            return None

        # Each makes two, if of itself alone: torch names a group by how many its members have made.
        def among(members: Sequence[int]) -> StaticTransport:
            made = StaticTransport(None)
            made.meter = self.meter
            ranks = [dist.get_global_rank(group, member) for member in members]
            made._group = dist.new_group(ranks, use_local_synchronization=True)
            return made

        inside, lane = among(place.inside), among(place.lane or (group.rank(),))
        return Levels(inside, lane if place.lane else None, place.lanes)

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        if self._group is None:
            return lambda: None
        self.meter.all_reduce(tensor.nbytes, self.size)
        return _wait_for(dist.all_reduce(tensor, group=self._group, async_op=True))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        if self._group is None:
            return [tensor]
        self.meter.all_gather(tensor.nbytes, self.size)
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self._group)
        return parts

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        if self._group is None:
            return list(outgoing)
        self.meter.all_to_all(outgoing)

        def begin(into: Tensor, given: Tensor, comes: list[int], goes: list[int]) -> Wait:
            work = dist.all_to_all_single(into, given, comes, goes, group=self._group, async_op=True)
            return _wait_for(work)

        return swap(outgoing, incoming, largest, begin)

    def start_send(self, tensor: Tensor, to: int) -> Wait:
        self.meter.message(tensor.nbytes)
        return _wait_for(dist.isend(tensor, group=self._group, group_dst=to))

    def start_receive(self, tensor: Tensor, source: int) -> Wait:
        return _wait_for(dist.irecv(tensor, group=self._group, group_src=source))


def _wait_for(work: dist.Work | None) -> Wait:
    assert work is not None

    def wait() -> None:
        work.wait()

    return wait
