"""Gossip against push-sum written in NumPy from the paper's matrices: weights, sums, distances and bytes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ranks import run_ranks
from tutti.config.agreement import SyncConfig
from tutti.sync import Gossip, Ledger, PeerLost, Place, StaticTransport, Summing, Totals
from tutti.sync.buffer import Buffer
from tutti.sync.codecs import Blocks, Codec, Floats, TopK
from tutti.sync.push import Push, parcel_bytes
from tutti.sync.summing import bytes_sent
from tutti.sync.transport import Wait

EVERY, STEPS, WIDTH = 7, 16, 40
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def first_weights() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))


def move(replica: int, step: int) -> Tensor:
    """What the optimizer of `replica` does in `step`: of norm 1."""
    change = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1000 * replica + step))
    return change / change.norm()


def make(transport: Any, replica: int, replicas: int, batch: int, **sync: Any) -> tuple[nn.Parameter, Gossip]:
    config = SyncConfig(policy="gossip", every=EVERY, **sync)
    policy = Gossip(
        transport, Place(replica, replicas), Ledger(), batch,
        every=EVERY, inside=StaticTransport(None), incarnation=0, summing=Summing.of(config, transport),
        squeeze=config.then == "zstd",
    )  # fmt: skip
    model = nn.Linear(WIDTH, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(first_weights()[None])
    policy.attach(model)
    return model.weight, policy


def train(rank: int, replicas: int, batch: int, sync: dict[str, Any]) -> tuple[Any, ...]:
    """Weights after every step, weights w, and bytes sent."""
    transport = StaticTransport(dist.group.WORLD)
    weights, policy = make(transport, rank, replicas, batch, **sync)
    policy.start(0, STEPS)
    history, masses = [], []
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            weights += move(rank, step)
        policy.after_step(step, STEPS, policy.before_step(Totals(1.0, 10, 0, False)))
        history.append(weights.detach()[0].double().numpy())
        masses.append(policy._mass)
    return np.stack(history), np.array(masses), transport.meter.sent, policy.ledger.state()


def mixing(members: int, number: int) -> Matrix:
    """The paper's P(k): p[i, j] is what i gets of what j has."""
    period = max(1, math.ceil(math.log2(members)))
    ahead = 2 ** (number % period)
    matrix = 0.5 * np.eye(members)
    for giver in range(members):
        matrix[(giver + ahead) % members, giver] += 0.5
    return matrix


def numpy_push_sum(replicas: int, batch: int) -> Matrix:
    """z of all replicas after every step, [steps, replicas, numbers]."""
    samples = np.array([batch // replicas + (r < batch % replicas) for r in range(replicas)])
    share = samples * replicas / samples.sum()
    agreed = first_weights().double().numpy()
    x, w, number, history = share[:, None] * agreed, share.copy(), 0, []
    for step in range(1, STEPS + 1):
        moves = np.stack([move(r, step).double().numpy() for r in range(replicas)])
        x = x + share[:, None] * moves
        if step % EVERY == 0 or step == STEPS:
            agreed = x.sum(0) / w.sum()
            x, w, number = share[:, None] * agreed, share.copy(), 0
        else:
            matrix = mixing(replicas, number)
            x, w, number = matrix @ x, matrix @ w, number + 1
        history.append(x / w[:, None])
    return np.stack(history)


@pytest.mark.parametrize(("replicas", "batch"), [(1, 4), (2, 8), (3, 6), (4, 4), (2, 3), (3, 7), (5, 11)])
def test_weights_follow_the_papers_equations(replicas: int, batch: int) -> None:
    found = run_ranks(replicas, train, replicas, batch, {})
    expected = numpy_push_sum(replicas, batch)
    for replica, (history, _, sent, ledger) in enumerate(found):
        np.testing.assert_allclose(history, expected[:, replica], atol=1e-6, rtol=1e-6)
        assert ledger == {"cursor": STEPS * batch, "returned": [], "loans": {}}
        assert sent == sent_bytes(Floats("fp32"), replicas, replica), "the meter is the formula"
    for step in (EVERY, 2 * EVERY, STEPS):
        assert len({history[step - 1].tobytes() for history, *_ in found}) == 1, "all meet in the same bits"


def sent_bytes(codec: Codec, replicas: int, rank: int) -> int:
    """Roll calls at 4 meetings, sums at 3 of them, and a parcel after every other step."""
    if replicas == 1:
        return 0
    meetings = [step for step in range(1, STEPS + 1) if step % EVERY == 0 or step == STEPS]
    roll = (len(meetings) + 1) * (replicas - 1) * 11 * 8
    sums = len(meetings) * bytes_sent(codec, WIDTH, [], replicas, rank)
    return roll + sums + (STEPS - len(meetings)) * parcel_bytes(codec, WIDTH)


@pytest.mark.parametrize("sync", [{"codec": "int8"}, {"codec": "topk", "density": 0.002}], ids=str)
def test_bytes_with_a_codec_are_the_formula(sync: dict[str, Any]) -> None:
    codec: Codec = Blocks(8) if sync["codec"] == "int8" else TopK(0.002)
    for rank, (_, _, sent, _) in enumerate(run_ranks(3, train, 3, 6, sync)):
        assert sent == sent_bytes(codec, 3, rank)


@pytest.mark.parametrize("members", [2, 4, 8, 16])
def test_replicas_stay_as_near_to_each_other_as_is_said(members: int) -> None:
    """In NumPy, with moves that pull apart as far as they can: the bound is reached and not passed."""
    rounds, power = 40, int(math.log2(members))
    bound = 2 * (power - 2 + 2 / members)
    for period in range(power):
        # Replica 0 after an exchange: D per step times what the product of matrices lets through.
        product, distance = np.eye(members), 0.0
        for back in range(rounds):
            product = product @ mixing(members, period - back)
            distance += np.abs(product[0] - 1 / members).sum()
        assert distance == pytest.approx(bound, abs=1e-9)


def drift(rank: int, replicas: int) -> list[Any]:
    weights, policy = make(StaticTransport(dist.group.WORLD), rank, replicas, replicas)
    policy._every = 60
    policy.start(0, 60)
    history = []
    for step in range(1, 60):
        with torch.no_grad():
            weights += move(rank, 0)  # every replica always pulls its own way: local_sgd would be 60 apart
        policy.after_step(step, 60, Totals(1.0, 10, 0, False))
        history.append(weights.detach()[0].double().numpy())
        assert (policy.figures()["divergence"] == 0) == (replicas == 1)
    return history


@pytest.mark.parametrize(("replicas", "bound"), [(2, 0.0), (4, 1.0), (3, 2.0), (5, 4.0)])
def test_distance_does_not_grow_with_the_round(replicas: int, bound: float) -> None:
    found = np.stack(run_ranks(replicas, drift, replicas))
    distances = np.linalg.norm(found - found.mean(0), axis=2).max(0)
    assert distances.max() <= bound + 1e-4
    expected = first_weights().double().numpy() + 59 * np.mean(
        [move(r, 0).double().numpy() for r in range(replicas)], axis=0
    )
    np.testing.assert_allclose(found[:, -1].mean(0), expected, atol=1e-4)


CODECS = {
    "fp32": lambda: Floats("fp32"),
    "fp16": lambda: Floats("fp16"),
    "bf16": lambda: Floats("bf16"),
    "int8": lambda: Blocks(8),
    "int4": lambda: Blocks(4),
    "topk": lambda: TopK(1 / 32),
    "topk, 2 bits": lambda: TopK(1 / 32, 2),
}
COUNT, EXCHANGES = 5000, 60


def pushed(rank: int, members: int, name: str, squeeze: bool) -> list[tuple[Any, float]]:
    """What this member holds after each exchange; nobody steps."""
    push = Push(StaticTransport(dist.group.WORLD), CODECS[name](), StaticTransport(None), squeeze=squeeze)
    held = torch.randn(COUNT, generator=torch.Generator().manual_seed(rank)) * (rank + 1)
    shape = Buffer.of(held, [("w", held)]).parts
    mass, history = 1.0 + rank, [(held.double().numpy(), 1.0 + rank)]
    for number in range(EXCHANGES):
        hop = 2 ** (number % math.ceil(math.log2(members)))
        given, came = push.exchange(
            Buffer(0.5 * held, shape), 0.5 * mass, (rank + hop) % members, (rank - hop) % members
        )
        held = held - given.numbers + came.numbers
        mass += came.weight - given.weight
        history.append((held.double().numpy(), mass))
    return history


@pytest.mark.parametrize("name", CODECS)
def test_sums_are_conserved_with_any_codec_and_no_number_grows(name: str) -> None:
    members = 3
    found = run_ranks(members, pushed, members, name, name in ("int8", "topk"))
    held = np.stack([[numbers for numbers, _ in member] for member in found])
    masses = np.array([[mass for _, mass in member] for member in found])
    np.testing.assert_allclose(masses.sum(0), 6.0, rtol=1e-12)
    np.testing.assert_allclose(held.sum(0), np.broadcast_to(held[:, 0].sum(0), held.shape[1:]), atol=2e-5)
    sizes = np.abs(held).sum(0)
    if name == "topk, 2 bits":
        assert sizes.max() < 1.5 * sizes[0].max(), "a mean in place of a number may be more than there was"
    else:
        assert bool((sizes[1:] <= sizes[:-1] + 1e-5).all())
    mean = held[:, 0].sum(0) / masses[:, 0].sum()
    models = held / masses[:, :, None]
    began, ended = (np.linalg.norm(models[:, when] - mean, axis=1).max() for when in (0, -1))
    assert ended < 0.1 * began if not name.startswith("topk") else ended < 0.8 * began


class Severed(StaticTransport):
    """Every exchange with `gone` fails, as if it had died."""

    gone: int

    def start_send(self, tensor: Tensor, to: int) -> Wait:
        if to == self.gone:
            raise PeerLost("gone")
        return super().start_send(tensor, to)

    def start_receive(self, tensor: Tensor, source: int) -> Wait:
        if source == self.gone:
            raise PeerLost("gone")
        return super().start_receive(tensor, source)


def bereaved(rank: int, members: int, lost: int) -> tuple[Any, float]:
    transport = Severed(dist.group.WORLD)
    transport.gone = lost
    weights, policy = make(transport, rank, members, members)
    policy._every = 300
    policy.start(0, 300)
    if rank == lost:
        return None, 0.0
    for step in range(1, 101):
        with torch.no_grad():
            weights += move(rank, 0) / 100
        policy.after_step(step, 300, Totals(1.0, 10, 0, False))
    return weights.detach()[0].double().numpy(), policy._mass


@pytest.mark.parametrize("members", [2, 3, 4, 5])
def test_those_who_are_left_go_on_with_each_other(members: int) -> None:
    """Member 1 is dead from the first exchange on."""
    found = [member for rank, member in enumerate(run_ranks(members, bereaved, members, 1)) if rank != 1]
    masses = np.array([mass for _, mass in found])
    assert masses.sum() == pytest.approx(members - 1), "nothing leaves for the dead"
    assert masses.min() > 0
    mean = sum(mass * weights for weights, mass in found) / masses.sum()
    began = first_weights().double().numpy()
    own = [move(rank, 0).double().numpy() for rank in range(members) if rank != 1]
    # A mean of what they did, in which everybody counts, and they are nearer to each other than ten steps' length.
    shares = np.linalg.lstsq(np.stack(own).T, mean - began, rcond=None)[0]
    np.testing.assert_allclose(np.stack(own).T @ shares, mean - began, atol=1e-4)
    assert shares.min() > 0.2 and 0.8 < shares.sum() < 1.01
    apart = max(np.linalg.norm(a - b) for (a, _), (b, _) in itertools.product(found, found))
    assert apart < 0.1


def stopping(rank: int) -> list[int]:
    _, policy = make(StaticTransport(dist.group.WORLD), rank, 2, 4)
    policy.start(0, 100)
    met = []
    for step in range(1, EVERY + 1):
        meeting = policy.after_step(step, 100, Totals(1.0, 10, 0, stop=rank == 1 and step >= 2))
        if meeting is not None:
            met.append((step, meeting.stop))
    return met


def test_who_is_asked_to_stop_waits_for_the_meeting() -> None:
    assert run_ranks(2, stopping) == [[(EVERY, True)]] * 2
