"""A gloo group that can be left in the middle of an exchange.

A collective of gloo that waits for a silent member cannot be called off: neither `abort` nor a destructor ends it
before its time-out. What does is the loss of its connections, so this module knows which sockets are the group's and
shuts them down: whoever waits is told at once, here and, by the broken connection, on the other side.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import (  # type: ignore[attr-defined]
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    ProcessGroupGloo,
    Work,
)

from tutti.sync.background import in_background
from tutti.sync.swap import swap
from tutti.sync.transport import Wait

#: Members that agreed to meet a moment ago answer quickly, or are dead.
_CONNECT_TIMEOUT = timedelta(seconds=5)
#: Silence is noticed long before (`pulse`); this is for what nobody thought of.
_EXCHANGE_TIMEOUT = timedelta(minutes=10)
#: An exchange that goes on for so many slices after its group was severed will not end by itself.
_SLICE, _SLICES = timedelta(milliseconds=100), 3
_stuck: list[Group] = []
#: Whose new listening port is whose must be clear.
_making = threading.Lock()


class Group:
    """Members 0 … size − 1 that met at `store` under one name. Every method may raise RuntimeError when one is gone."""

    def __init__(self, store: Store, name: str, rank: int, size: int, host: str) -> None:
        self.rank = rank
        self.size = size
        self.severed = False
        store = PrefixStore(name, store)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        with _making:
            before = _listening()
            options._devices = [ProcessGroupGloo.create_device(hostname=host)]
            (port,) = _listening() - before
        options._timeout = _CONNECT_TIMEOUT
        store.set_timeout(_CONNECT_TIMEOUT)
        store.set(f"port-{rank}", str(port))
        self._ports = {int(store.get(f"port-{member}")) for member in range(size)}
        self._backend: Any = ProcessGroupGloo(store, rank, size, options)
        self._backend._set_default_timeout(_EXCHANGE_TIMEOUT)

    def all_reduce(self, tensor: Tensor) -> Wait:
        """Begin to sum `tensor` over the members in place."""
        return self._until_done(self._backend.allreduce([tensor], AllreduceOptions()))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The members' `tensor`, by rank."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._until_done(self._backend.allgather([parts], [tensor], AllgatherOptions()))()
        return parts

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        """Give `outgoing[i]` (uint8) to member i and get `incoming[i]` bytes from it; `largest`: see `swap`."""

        def begin(into: Tensor, given: Tensor, comes: list[int], goes: list[int]) -> Wait:
            return self._until_done(self._backend.alltoall_base(into, given, comes, goes, AllToAllOptions()))

        return swap(outgoing, incoming, largest, begin)

    def send(self, tensor: Tensor, to: int) -> Wait:
        """Begin to give `tensor` to member `to`."""
        return self._until_done(_OnThread(self._backend.send([tensor], to, 0)))

    def receive(self, tensor: Tensor, source: int) -> Wait:
        """Begin to fill `tensor` with what member `source` sends."""
        return self._until_done(_OnThread(self._backend.recv([tensor], source, 0)))

    def sever(self) -> None:
        """Break off: every exchange, begun or to come, fails now. May be called from any thread."""
        self.severed = True
        for connection in psutil.Process().net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN or connection.fd < 0:
                continue
            ports = {address.port for address in (connection.laddr, connection.raddr) if address}
            if ports & self._ports:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as ours:
                    if self._is_between_members(ours):
                        ours.shutdown(socket.SHUT_RDWR)

    def _is_between_members(self, held: socket.socket) -> bool:
        """Whether `held` is what it was a moment ago: its number may have gone to another socket since, such as the one
        at which the next group listens, and gloo ends the process when that is shut down."""
        listens = held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return not listens and bool({held.getsockname()[1], held.getpeername()[1]} & self._ports)

    def _until_done(self, work: Work | _OnThread) -> Wait:
        def wait() -> None:
            patience = _SLICES
            while True:
                try:
                    work.wait(_SLICE)
                except RuntimeError as error:
                    if work.is_completed():
                        # The slice may have ended a moment before the work did: its own result counts.
                        work.wait()
                        return
                    patience -= self.severed
                    if not patience:
                        # gloo does not tell everybody who waits when a connection ends in an orderly way. Its thread
                        # is left to its time-out, and must find its group alive then.
                        _stuck.append(self)
                        raise RuntimeError("an exchange did not end although its connections have") from error
                else:
                    return

        return wait


class _OnThread:
    """A message between two, waited for by a thread: gloo ends all connections of the group when whoever waits for a
    message gives up after a while, be it to look whether it should go on waiting."""

    def __init__(self, work: Work) -> None:
        self._done = in_background(work.wait, "message")

    def wait(self, timeout: timedelta | None = None) -> None:
        """Raises RuntimeError when it has failed, or is not done after `timeout`."""
        try:
            self._done.result(None if timeout is None else timeout.total_seconds())
        except TimeoutError as error:
            raise RuntimeError("not yet") from error

    def is_completed(self) -> bool:
        """Whether it is over, one way or the other."""
        return self._done.done()


def _listening() -> set[int]:
    connections = psutil.Process().net_connections("tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
