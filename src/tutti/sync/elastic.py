"""Members that come and go: membership, quorum and healing by torchft, tensors by its gloo group.

torchft's Lighthouse knows who is alive (heartbeats), its Manager agrees on a quorum, hands a newcomer the state
of a member over HTTP, and votes whether an exchange counted. Consensus is nothing to write at home. Its own
all-reduce is not used: it averages over participants and turns errors into zeros, while a policy here wants
sums and the truth (`PeerLost`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import (  # type: ignore[attr-defined]
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
)
from torchft import Manager, ProcessGroupGloo

from tutti.sync.transport import PeerLost, Transport, Wait

_EXCHANGE_TIMEOUT = timedelta(seconds=60)
_QUORUM_TIMEOUT = timedelta(hours=6)


class ElasticTransport(Transport):
    """One part of this replica and its peers in the replicas that are alive.

    `give_state` returns what a newcomer needs (called on a member that donates, its training stands still
    meanwhile), `take_state` receives it (called on the newcomer within `meet`).
    """

    def __init__(
        self,
        *,
        lighthouse: str,
        store: tuple[str, int],
        replica: int,
        part: int,
        parts: int,
        min_replicas: int,
        give_state: Callable[[], Any],
        take_state: Callable[[Any], None],
    ) -> None:
        super().__init__()
        # torchft narrates every quorum at INFO and logs an expected loss of a peer with a traceback.
        for name in ("torchft", "torchft.manager", "torchft.process_group"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._healed = False
        self._rounds = 0

        def receive(state: Any) -> None:
            take_state(state)
            self._healed = True

        self._group = ProcessGroupGloo(timeout=_EXCHANGE_TIMEOUT)
        self._manager = Manager(
            pg=self._group,
            load_state_dict=receive,
            state_dict=give_state,
            min_replica_size=min_replicas,
            use_async_quorum=False,
            timeout=_EXCHANGE_TIMEOUT,
            quorum_timeout=_QUORUM_TIMEOUT,
            connect_timeout=timedelta(seconds=20),
            rank=part,
            world_size=parts,
            store_addr=store[0],
            store_port=store[1],
            lighthouse_addr=lighthouse,
            replica_id=f"replica{replica}",
            hostname="localhost",
            init_sync=False,
        )

    @property
    def rank(self) -> int:
        return self._manager.participating_rank() or 0

    @property
    def size(self) -> int:
        return self._manager.num_participants()

    def resume_at(self, rounds: int) -> None:
        """This member has taken part in `rounds` rounds (from a checkpoint): whoever has fewer is healed."""
        self._manager.load_state_dict({"step": rounds, "batches_committed": 0})

    @property
    def rounds(self) -> int:
        """Rounds that were committed."""
        return self._manager.current_step()

    def meet(self) -> bool:
        self._healed = False
        self._manager.start_quorum(allow_heal=True)
        return self._healed

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        self._require_sound()
        options = AllreduceOptions()  # a sum, unless told otherwise
        self.meter.all_reduce(tensor.nbytes, self.size)
        work = self._attempt(lambda: self._group.allreduce([tensor], options))

        def wait() -> None:
            self._attempt(work.wait)

        return wait

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._require_sound()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self.meter.all_gather(tensor.nbytes, self.size)
        self._attempt(lambda: self._group.allgather([parts], [tensor], AllgatherOptions()).wait())
        return parts

    def all_to_all(self, outgoing: Sequence[Tensor], incoming: Sequence[int]) -> list[Tensor]:
        self._require_sound()
        self.meter.all_to_all(outgoing)
        leaving, arriving = torch.cat(list(outgoing)), torch.empty(sum(incoming), dtype=torch.uint8)
        sizes = [len(tensor) for tensor in outgoing]
        options = AllToAllOptions()
        self._attempt(
            lambda: self._group.alltoall_base(arriving, leaving, list(incoming), sizes, options).wait()
        )
        return list(torch.split(arriving, list(incoming)))

    def commit(self) -> bool:
        return bool(self._manager.should_commit())

    def close(self) -> None:
        self._manager.shutdown(wait=False)

    def _require_sound(self) -> None:
        if self._manager.errored() is not None:
            raise PeerLost("the group of this round is broken")

    def _attempt(self, exchange: Callable[[], Any]) -> Any:
        try:
            return exchange()
        except Exception as error:  # gloo and torchft raise whatever they like when a peer is gone
            self._manager.report_error(error)
            raise PeerLost(str(error)) from error
