"""The rendezvous of one node, which meets nobody.

torch's own (c10d) listens at every address of the machine and reads pickles from there: whoever reached its port could
run code in the launcher. This one is at the loopback address, and reads nothing.
"""

from __future__ import annotations

import itertools

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from tutti.launch.store import store_at

_HERE = "127.0.0.1"


class AloneRendezvous(RendezvousHandler):
    """`name`: of whose processes they are. The processes find each other at its store."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._store = store_at(_HERE)
        self._rounds = itertools.count()
        self._closed = False

    def get_backend(self) -> str:
        return "alone"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        store = PrefixStore(f"round-{next(self._rounds)}", self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(_HERE, self._store.port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._name

    def shutdown(self) -> bool:
        self._closed = True
        return True
