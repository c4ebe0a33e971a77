"""Members over real sockets: a lighthouse, a store, and processes that meet, die and come without being asked."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from ranks import run_ranks
from tutti.sync import PeerLost
from tutti.sync.buffer import Buffer
from tutti.sync.channel import new_secret
from tutti.sync.codecs import Blocks, ErrorFeedback, Shaped
from tutti.sync.summing import Summing

pytestmark = pytest.mark.distributed


@dataclass
class Place:
    lighthouse: str
    port: int


@pytest.fixture
def place() -> Iterator[Place]:
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(
        bind="127.0.0.1:0",
        min_replicas=1,
        join_timeout_ms=60_000,
        quorum_tick_ms=20,
        heartbeat_timeout_ms=500,
    )
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield Place(lighthouse.address(), store.port)
    lighthouse.shutdown()


def transport(place: Place, replica: int, secret: bytes, said: list[str], machine: str | None = None) -> Any:
    from tutti.sync.elastic import ElasticTransport

    made = ElasticTransport(
        lighthouse=place.lighthouse,
        store=("localhost", place.port),
        replica=replica,
        incarnation=0,
        part=0,
        parts=1,
        inside=None,
        host="localhost",
        secret=secret,
        say=said.append,
        machine=machine,
    )
    made.announce()
    return made


def together(rank: int) -> None:
    """Wait for the other processes of the test (which are no members of anything)."""
    torch.distributed.barrier()


def total(made: Any, value: float) -> float:
    tensor = torch.tensor([value])
    made.all_reduce(tensor)
    return float(tensor)


def with_stranger(rank: int, place: Place, secret: bytes) -> tuple[int, float, list[str]]:
    said: list[str] = []
    made = transport(place, rank, secret if rank < 2 else new_secret(), said)
    together(rank)
    while True:
        made.meet()
        try:
            result = (made.size, total(made, rank + 1.0), said)
        except PeerLost:  # a busy machine may keep a member from joining in time
            made.commit(good=False)
            continue
        if made.commit():
            break
    together(rank)
    made.close()
    return result


def test_who_does_not_know_the_secret_is_passed_over(place: Place) -> None:
    """All three are in the lighthouse's quorum; two know each other, the third is left with itself."""
    first, second, stranger = run_ranks(3, with_stranger, place, new_secret())
    assert first[:2] == second[:2] == (2, 3.0)
    assert "does not know this run's secret" in first[2][0] and "00002" in first[2][0]
    assert stranger[:2] == (1, 3.0)


def with_late_receiver(rank: int, place: Place, secret: bytes) -> tuple[list[float], float]:
    made = transport(
        place, rank, secret, [], machine=""
    )  # as with accelerators, whose libraries know machines
    together(rank)
    while made.size < 2:
        made.meet()
    got = torch.zeros(1_000_000)
    for round_ in range(2):
        send = made.start_send(torch.full_like(got, 10 * rank + round_), 1 - rank) if rank == 0 else None
        if rank == 1:
            time.sleep(0.6)  # for so long member 0 waits, and would on a slow link
            made.start_receive(got, 0)()
        if send is not None:
            send()
    return [float(got.min()), float(got.max())], total(made, rank + 1.0)


def test_a_message_may_be_on_its_way_for_long(place: Place) -> None:
    (_, first), (got, second) = run_ranks(2, with_late_receiver, place, new_secret())
    assert got == [1.0, 1.0]
    assert first == second == 3.0, "the group is as it was"


def test_whoever_waits_for_a_dead_member_is_told_and_meets_the_others(place: Place) -> None:
    secret = new_secret()
    context = multiprocessing.get_context("forkserver")
    pipes = []
    for rank in range(3):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=_member, args=(rank, place, secret, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes[:2]:
        assert pipe.poll(60)
        found = pipe.recv()
        assert found == {"before": 6.0, "counted": False, "changed": True, "after": 3.0}


def _member(rank: int, place: Place, secret: bytes, pipe: Any) -> None:
    torch.set_num_threads(1)
    made = transport(place, rank, secret, [])
    store = TCPStore("localhost", place.port, is_master=False, wait_for_workers=False)
    store.add("here", 1)
    while store.add("here", 0) < 3:
        time.sleep(0.01)
    made.meet()
    found: dict[str, Any] = {"before": total(made, rank + 1.0)}
    assert made.commit()
    if rank == 2:
        time.sleep(0.3)  # the others wait in the next sum by now
        os.kill(os.getpid(), 9)
    try:
        total(made, 1.0)
        lost = False
    except PeerLost:
        lost = True
    found["counted"] = made.commit(good=not lost)
    found["changed"] = made.meet()
    found["after"] = total(made, rank + 1.0)
    pipe.send(found)
    made.close()


def test_silence_is_noticed_without_an_exchange(place: Place) -> None:
    """A member that is stopped breaks the group of the others within a second or two, whatever they do."""
    first, _ = run_ranks(2, _silent, place, new_secret())
    assert first


def _silent(rank: int, place: Place, secret: bytes) -> bool:
    made = transport(place, rank, secret, [])
    together(rank)
    made.meet()
    total(made, 1.0)
    if rank == 1:
        made._pulse.close()  # its heartbeats end; its sockets with gloo stay open
        time.sleep(4)
        return True
    deadline = time.monotonic() + 10
    while not made.broken and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(made.broken)


def test_sums_in_two_levels_outlive_a_member(place: Place) -> None:
    """Two machines of two; one member dies in the middle of a sum, and its machine has one left."""
    secret = new_secret()
    context = multiprocessing.get_context("forkserver")
    pipes = []
    for rank in range(4):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=_on_machine, args=(rank, place, secret, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes[:3]:
        assert pipe.poll(60)
        assert pipe.recv() == {"lanes": [2, 1], "sums": [10.0, 6.0], "counted": [True, False, True]}


def _on_machine(rank: int, place: Place, secret: bytes, pipe: Any) -> None:
    torch.set_num_threads(1)
    made = transport(place, rank, secret, [], machine="left" if rank < 2 else "right")
    summing = Summing(made, Blocks(8), feedback=ErrorFeedback(), squeeze=False)
    store = TCPStore("localhost", place.port, is_master=False, wait_for_workers=False)
    store.add("here", 1)
    while store.add("here", 0) < 4:
        time.sleep(0.01)
    found: dict[str, Any] = {"lanes": [], "sums": [], "counted": []}
    for attempt in range(3):
        if attempt != 1:
            made.meet()
            found["lanes"].append(made.levels.lanes)
        elif rank == 3:
            time.sleep(0.3)  # the others wait in the next sum by now
            os.kill(os.getpid(), 9)
        flat = torch.full((10_000,), rank + 1.0)
        try:
            summing.sum(Buffer(flat, [Shaped("w", flat.shape, 0)]))
            lost = False
        except PeerLost:
            lost = True
        found["counted"].append(made.commit(good=not lost))
        if found["counted"][-1]:
            summing.keep()
            assert (flat - flat[0]).abs().max() < 0.1
            found["sums"].append(round(float(flat[0]), 1))
        else:
            summing.drop()
    pipe.send(found)
    made.close()


def test_of_two_with_one_number_the_newer_is_a_member() -> None:
    """A machine slept, its place was given away, and now it is awake again."""
    from tutti.sync.membership import _newest

    names = ["00001.10000:old", "00000.3:first", "00001.20001:new"]
    assert _newest(names) == ("00000.3:first", "00001.20001:new")
