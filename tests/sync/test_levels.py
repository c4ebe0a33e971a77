"""Sums inside machines first: as sums among machines of what their members have together; fewer bytes between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ranks import run_ranks
from tutti.sync import StaticTransport
from tutti.sync.buffer import Buffer, lane_bounds
from tutti.sync.codecs import Blocks, ErrorFeedback, Floats, PowerSGD, Shaped, TopK
from tutti.sync.levels import Arrangement, arrange
from tutti.sync.summing import Summing, bytes_sent

CODECS: dict[str, Any] = {
    "fp32": lambda: Floats("fp32"),
    "bf16": lambda: Floats("bf16"),
    "int8": lambda: Blocks(8),
    "int4": lambda: Blocks(4),
    "topk": lambda: TopK(1 / 32),
    "powersgd": lambda: PowerSGD(2),
}
ROUNDS = 3
#: In any order of ranks.
PLACES = {"3+2": "aaabb", "2+2 mixed": "abab", "2+1": "aab"}
SHAPES = {"embedding": (150, 64), "bias": (33,), "matrix": (80, 16, 8), "small": (2, 2)}


def parts() -> list[Shaped]:
    found, start = [], 0
    for name, shape in SHAPES.items():
        found.append(Shaped(name, torch.Size(shape), start))
        start += found[-1].size
    return found


COUNT = sum(part.size for part in parts())


def values_of(rank: int, number: int) -> Tensor:
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(100 * number + rank))


def summed(transport: StaticTransport, codec: str, members: list[list[int]]) -> tuple[list[Any], Any, int]:
    """Of every round, what is owed in the end, and bytes sent; member i gives the sum of ranks `members[i]`."""
    feedback = ErrorFeedback() if CODECS[codec]().needs_feedback else None
    summing = Summing(transport, CODECS[codec](), feedback=feedback, squeeze=False)
    before, results = transport.meter.sent, []
    for number in range(ROUNDS):
        flat = torch.zeros(COUNT)
        for rank in members[transport.rank]:
            flat += values_of(rank, number)
        summing.sum(Buffer(flat, parts()))
        summing.keep()
        results.append(flat.numpy())
    (owed,) = summing.owed([Buffer(flat, [Shaped("embedding", flat.shape, 0)])]).values() or (
        torch.zeros(COUNT),
    )
    return results, owed.numpy().copy(), transport.meter.sent - before


def in_two_levels(rank: int, machines: str) -> dict[str, tuple[list[Any], Any, int]]:
    transport = StaticTransport(dist.group.WORLD, machine=machines[rank])
    return {codec: summed(transport, codec, [[r] for r in range(len(machines))]) for codec in CODECS}


def among_machines(rank: int, machines: str) -> dict[str, tuple[list[Any], Any, int]]:
    """One rank a machine."""
    transport = StaticTransport(dist.group.WORLD)
    found = {}
    members = [[r for r, m in enumerate(machines) if m == machine] for machine in sorted(set(machines))]
    for codec in CODECS:
        found[codec] = summed(transport, codec, members)
    return found


@pytest.fixture(scope="module", params=PLACES.values(), ids=PLACES)
def sums(request: Any) -> tuple[str, list[Any], list[Any]]:
    machines = request.param
    return machines, run_ranks(len(machines), in_two_levels, machines), run_ranks(2, among_machines, machines)


@pytest.mark.parametrize("codec", CODECS)
def test_everybody_has_the_same_sum(codec: str, sums: Any) -> None:
    machines, members, reference = sums
    exact = np.stack(
        [sum(values_of(r, n).double() for r in range(len(machines))).numpy() for n in range(ROUNDS)]
    )
    for member in members:
        for ours, theirs in zip(member[codec][0], members[0][codec][0], strict=True):
            assert ours.tobytes() == theirs.tobytes()
    if codec in ("fp32", "bf16"):
        np.testing.assert_allclose(members[0][codec][0], exact, atol={"fp32": 1e-5, "bf16": 0.1}[codec])
    # A block of numbers may lie in another block than it does when a whole buffer is sent: as near, not the same.
    ours, theirs = (np.abs(np.stack(found[0][codec][0]) - exact).mean() for found in (members, reference))
    assert ours <= 1.1 * theirs + 1e-6


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_is_lost_but_what_is_owed(codec: str, sums: Any) -> None:
    machines, members, _ = sums
    sent = sum(
        values_of(r, number).double() for r in range(len(machines)) for number in range(ROUNDS)
    ).numpy()
    arrived = sum(total.astype(np.float64) for total in members[0][codec][0])
    owed = sum(member[codec][1].astype(np.float64) for member in members)
    assert np.abs(arrived + owed - sent).max() < (2e-2 if codec == "bf16" else 1e-4) * np.abs(sent).max()


@pytest.mark.parametrize("codec", CODECS)
def test_between_machines_only_one_buffer_of_each_travels(codec: str, sums: Any) -> None:
    machines, members, _ = sums
    whole = Buffer(torch.zeros(COUNT), parts())
    places = [arrange(machines, rank) for rank in range(len(machines))]
    for rank, place in enumerate(places):
        assert place is not None
        bounds = lane_bounds(whole, place.lanes, whole_parts=codec == "powersgd")
        own = place.inside.index(rank)
        sizes = [4 * (stop - start) for start, stop in bounds] + [0] * (len(place.inside) - place.lanes)
        inside = sum(sizes) - sizes[own] + (len(place.inside) - 1) * sizes[own]
        across = 0
        if place.lane:
            piece = whole.piece(*bounds[own])
            across = bytes_sent(CODECS[codec](), len(piece.flat), piece.parts, 2, place.lane.index(rank))
        assert members[rank][codec][2] == ROUNDS * (inside + across)
        if codec == "powersgd" and place.lane:
            assert all(part.shape == torch.Size(SHAPES[part.name]) for part in piece.parts)


def moving(rank: int) -> tuple[list[Any], list[int], Any]:
    """Members move to other machines from round to round: what arrived, how many numbers were owed, what in the end."""
    transports = [StaticTransport(dist.group.WORLD, machine=where[rank]) for where in MOVES]
    feedback = ErrorFeedback()
    summing = Summing(transports[0], TopK(1 / 32), feedback=feedback, squeeze=False)
    arrived, owing = [], []
    for number in range(2 * len(MOVES)):
        summing.transport = transports[number % len(MOVES)]
        flat = values_of(rank, number)
        summing.sum(Buffer(flat, parts()))
        summing.keep()
        arrived.append(flat.numpy())
        owing.append(int(feedback.errors["embedding"].count_nonzero()))
    return arrived, owing, feedback.errors["embedding"].numpy().copy()


MOVES = ("aabb", "aaab", "abab", "aaaa")


def test_debts_are_paid_wherever_members_move() -> None:
    members = run_ranks(4, moving)
    sent = sum(
        values_of(rank, number).double() for rank in range(4) for number in range(2 * len(MOVES))
    ).numpy()
    arrived = sum(total.astype(np.float64) for total in members[0][0])
    owed = sum(debts.astype(np.float64) for _, _, debts in members)
    assert np.abs(arrived + owed - sent).max() < 1e-4 * np.abs(sent).max()
    for rank, (_, owing, _) in enumerate(members):
        for number, count in enumerate(owing):
            place = arrange(MOVES[number % len(MOVES)], rank)
            if place is None:  # alike: of all that it has, most was not sent
                assert count > COUNT / 2
            elif not place.lane:
                assert count == 0, "who sends nothing between machines owes nothing, from whatever time"
            else:
                whole = Buffer(torch.zeros(COUNT), parts())
                start, stop = lane_bounds(whole, place.lanes, whole_parts=False)[place.inside.index(rank)]
                assert (stop - start) / 2 < count <= stop - start


def test_who_is_where() -> None:
    assert arrange("aaa", 0) is None  # one machine
    assert arrange("abc", 1) is None  # one member each
    assert arrange("aabb", 3) == Arrangement((2, 3), (1, 3), 2)
    assert arrange("aaab", 0) == Arrangement((0, 1, 2), (0, 3), 1)
    assert arrange("aaab", 2) == Arrangement((0, 1, 2), (), 1)
