"""This replica among the others: the policy and transport that the configuration asks for, and a common start."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tutti.config import Config
from tutti.parallel import World
from tutti.sync import (
    AllReduce,
    DiLoCo,
    DistributedDataParallelAllReduce,
    LocalSGD,
    Place,
    Policy,
    StaticTransport,
    Summing,
    Transport,
)
from tutti.sync.server import ServerAddress
from tutti.train.state import RunState

#: How long replicas that are started together wait for each other before the first round.
_START_TOGETHER_SECONDS = 120


@dataclass(frozen=True)
class Elastic:
    """How this replica finds the others: torchft's lighthouse or a server, and a store to start together."""

    replica: int
    lighthouse: str | None
    store: tuple[str, int]
    server: ServerAddress | None = None


def make_policy(
    config: Config,
    world: World,
    state: RunState,
    elastic: Elastic | None,
    attempt: int,
    *,
    give: Callable[[], Any],
    take: Callable[[Any], None],
) -> Policy:
    """The policy that `config.sync` asks for, over the transport that this world has.

    `give`, `take`: what a newcomer is handed, and what is done with it (elastic membership only).
    """
    sync = config.sync
    place = Place(world.replica, world.replicas, world.part, world.parts)
    if sync.policy == "allreduce":
        kind = DistributedDataParallelAllReduce if sync.implementation == "ddp" else AllReduce
        peers = StaticTransport(world.peers)
        return kind(
            peers,
            place,
            state.ledger,
            config.train.batch,
            bucket_bytes=round(sync.bucket_mb * 1e6),
            everyone=world.everyone,
            summing=Summing.of(sync, peers),
        )
    transport: Transport = StaticTransport(world.peers)
    if elastic is not None and elastic.lighthouse is not None:
        from tutti.sync.elastic import (
            ElasticTransport,
        )  # torchft starts servers; only who needs it imports it

        transport = ElasticTransport(
            lighthouse=elastic.lighthouse,
            store=_replica_store(world),
            replica=world.replica,
            part=world.part,
            parts=world.parts,
            min_replicas=sync.min_replicas,
            give_state=give,
            take_state=take,
        )
    common: dict[str, Any] = {
        "every": sync.every,
        "inside": StaticTransport(world.inside),
        "incarnation": attempt,
        "summing": Summing.of(sync, transport),
    }
    if sync.policy == "local_sgd":
        return LocalSGD(transport, place, state.ledger, config.train.batch, **common)
    return DiLoCo(
        transport,
        place,
        state.ledger,
        config.train.batch,
        learning_rate=sync.outer_learning_rate,
        momentum=sync.outer_momentum,
        **common,
    )


def _replica_store(world: World) -> tuple[str, int]:
    """A store for the parts of this replica, new at every attempt, so that nobody reads a dead manager's address."""
    address: list[Any] = [None]
    if world.part == 0:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        _keep_open.append(store)
        address = [("localhost", store.port)]
    if world.inside is not None:
        dist.broadcast_object_list(address, group=world.inside, group_src=0)
    host, port = address[0]
    return host, port


_keep_open: list[Any] = []


def resume_transport(policy: Policy, state: RunState) -> None:
    """Tell the membership how many rounds this replica has taken part in: whoever has fewer is healed."""
    from tutti.sync.elastic import ElasticTransport

    if isinstance(policy.transport, ElasticTransport):
        policy.transport.resume_at(state.rounds)


def start_together(elastic: Elastic, world: World) -> None:
    """Wait until all replicas that were started with this one are ready; go on without those that don't come."""
    store = TCPStore(*elastic.store, is_master=False, wait_for_workers=False)
    if world.part == 0:
        store.add("ready", 1)
    deadline = time.monotonic() + _START_TOGETHER_SECONDS
    while store.add("ready", 0) < world.replicas and time.monotonic() < deadline:
        time.sleep(0.02)
