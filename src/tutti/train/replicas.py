"""This replica among the others: the policy and transport that the configuration asks for, and a common start."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tutti.config import Config
from tutti.config.agreement import SyncConfig
from tutti.core.machine import this_machine
from tutti.parallel import World
from tutti.sync import (
    AllReduce,
    DiLoCo,
    DistributedDataParallelAllReduce,
    ElasticAllReduce,
    Gossip,
    LateAllReduce,
    LocalSGD,
    Place,
    Policy,
    Rounds,
    StaticTransport,
    StreamingDiLoCo,
    Summing,
    SynchronousStart,
    Transport,
)
from tutti.sync.batches import BatchSizes
from tutti.sync.server import ServerAddress
from tutti.train.state import RunState

#: How long replicas that are started together wait for each other before the first round.
_START_TOGETHER_SECONDS = 120
_PATIENT_SECONDS = 5


@dataclass(frozen=True)
class Elastic:
    """How this replica finds the others: torchft's lighthouse or a server, a store to meet at, and the run's secret.

    `host`: what the others call this one's machine. `guest`: it comes from another machine than the run was started on,
    and gets all it needs from the others. `incarnation`: how often others bore its number before.
    """

    replica: int
    lighthouse: str | None
    store: tuple[str, int]
    secret: bytes
    host: str = "localhost"
    server: ServerAddress | None = None
    guest: bool = False
    incarnation: int = 0


def make_policy(
    config: Config,
    world: World,
    state: RunState,
    elastic: Elastic | None,
    incarnation: int,
    *,
    give: Callable[[], Any],
    take: Callable[[Any], None],
    say: Callable[[str], None],
) -> Policy:
    """The policy that `config.sync` asks for, over the transport that this world has.

    `give`, `take`: what a newcomer is handed, and what is done with it (elastic membership only). `say`: told of
    strangers who want to take part.
    """
    sync = config.sync
    place = Place(world.replica, world.replicas, world.part, world.parts)
    machine = None
    if sync.topology == "hierarchical" and sync.implementation != "ddp":
        # NCCL and its like know the machines, and better links inside them than through the host.
        machine = this_machine() if world.device.type == "cpu" else ""
    transport = make_transport(world, elastic, incarnation, say, machine=machine)
    inside = StaticTransport(world.inside)
    shared = (transport, place, state.ledger, int(config.train.batch))
    summing = Summing.of(sync, transport)
    handover = None if elastic is None else (give, take)
    bucket_bytes = round(sync.bucket_mb * 1e6)
    batches = BatchSizes.of(config.train, int(config.train.batch))

    def together(summing: Summing) -> AllReduce:
        if handover is None:
            late = sync.policy == "allreduce" and sync.overlap  # another policy's is another thing
            kind = LateAllReduce if late else AllReduce
            if sync.implementation == "ddp":
                kind = DistributedDataParallelAllReduce
            fixed = kind(*shared, bucket_bytes=bucket_bytes, everyone=world.everyone, summing=summing)
            fixed.batches = batches
            return fixed
        elastic = ElasticAllReduce(
            *shared,
            bucket_bytes=bucket_bytes,
            inside=inside,
            handover=handover,
            summing=summing,
            measured_shares=sync.shares == "measured",
        )
        elastic.batches = batches
        return elastic

    if sync.policy == "allreduce":
        return together(summing)
    common: dict[str, Any] = {
        "every": sync.every,
        "inside": inside,
        "incarnation": incarnation,
        "summing": summing,
        "handover": handover,
        "measured_shares": elastic is not None and sync.shares == "measured",
    }
    apart = _rounds(sync, shared, common)
    if not sync.synchronous_steps:
        return apart
    return SynchronousStart(together(Summing.of(sync, transport)), apart, sync.synchronous_steps)


def _rounds(sync: SyncConfig, shared: tuple[Any, ...], common: dict[str, Any]) -> Rounds:
    """The policies whose replicas train apart between meetings."""
    if sync.policy == "local_sgd":
        return LocalSGD(*shared, **common)
    if sync.policy == "gossip":
        common["measured_shares"] = False  # neighbours wait for each other, so all make the same steps
        return Gossip(*shared, squeeze=sync.then == "zstd", **common)
    assert sync.outer_momentum != "auto" and sync.outer_learning_rate != "auto", (
        "resolved before a worker starts"
    )
    common |= {"learning_rate": sync.outer_learning_rate, "momentum": sync.outer_momentum}
    if sync.fragments > 1 or sync.overlap:
        return StreamingDiLoCo(
            *shared, fragments=sync.fragments, overlap=sync.overlap, merge=sync.merge, **common
        )
    return DiLoCo(*shared, **common)


def make_transport(
    world: World,
    elastic: Elastic | None,
    incarnation: int,
    say: Callable[[str], None],
    *,
    machine: str | None = None,
) -> Transport:
    """What carries tensors between this rank and its peers; `say`: told of strangers who want to take part.
    `machine`: this one, where sums are to be made inside machines first."""
    if elastic is None:
        return StaticTransport(world.peers, machine=machine)
    from tutti.sync.elastic import ElasticTransport  # torchft starts servers; only who needs it imports it

    assert elastic.lighthouse is not None, "only policy server goes without one"
    return ElasticTransport(
        lighthouse=elastic.lighthouse,
        store=elastic.store,
        replica=world.replica,
        incarnation=incarnation,
        part=world.part,
        parts=world.parts,
        inside=world.inside,
        host=elastic.host,
        secret=elastic.secret,
        say=say,
        machine=machine,
    )


def start_together(
    elastic: Elastic,
    world: World,
    on_wait: Callable[[int, int], None],
    patience: float = _START_TOGETHER_SECONDS,
) -> None:
    """Wait until all replicas of a run that begins are ready; after `patience` go on without those that don't come.

    A guest waits until somebody has begun who has what a resumed run begins with. `on_wait(missing, seconds)` is told
    when it takes more than a moment.
    """
    store = TCPStore(*elastic.store, is_master=False, wait_for_workers=False)
    if world.part == 0:
        store.add("ready", 1)
    began, told = time.monotonic(), False
    while not store.check(["begun"]):
        missing, waited = world.replicas - store.add("ready", 0), time.monotonic() - began
        if not elastic.guest and (missing <= 0 or waited > patience):
            store.set("begun", "yes")
            break
        if missing > 0 and waited > _PATIENT_SECONDS and not told:
            on_wait(missing, max(0, round(patience - waited)))
            told = True
        time.sleep(0.02)
