"""Streaming DiLoCo against its equations, written in NumPy, and its accounts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ranks import run_ranks
from tutti.core import ConfigError
from tutti.sync import Ledger, Place, StaticTransport, StreamingDiLoCo, Totals, merge
from tutti.sync.streaming import fragments_of

MEMBERS, STEPS, BATCH = 2, 14, 6
TARGETS = np.array([10.0, 30.0])
RATE, MOMENTUM = 0.7, 0.5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1))


def change(replica: int, step: int, block: int) -> float:
    return 0.1 * (replica + 1) * (block + 1) / step


def train(rank: int, every: int, fragments: int, overlap: int, alpha: float) -> dict[str, Any]:
    model, ledger = net(), Ledger()
    policy = StreamingDiLoCo(
        StaticTransport(torch.distributed.group.WORLD), Place(rank, MEMBERS), ledger, BATCH, every=every,
        inside=StaticTransport(None), incarnation=0, learning_rate=RATE, momentum=MOMENTUM, fragments=fragments,
        overlap=overlap, merge=alpha,
    )  # fmt: skip
    policy.attach(model)
    meetings = [policy.start(0, STEPS)]
    history, agreed, trained = [], [], []
    for _ in range(STEPS):

        def work(step: int) -> Totals:
            trained.extend(policy.samples(step))
            with torch.no_grad():
                for block, layer in enumerate(model):
                    for parameter in layer.parameters():
                        parameter += change(rank, step, block)
            return policy.before_step(Totals(1.0, int(TARGETS[rank]), 0, False))

        step, totals = policy.make_step(0, work)
        meeting = policy.after_step(step, STEPS, totals)
        history.append([layer.bias[0].item() for layer in model])
        if meeting is not None:
            meetings.append(meeting)
            with policy.consensus():
                agreed.append([layer.bias[0].item() for layer in model])
            assert history[-1] == [layer.bias[0].item() for layer in model], "what was shown is put back"
    committed = [piece for m in meetings if m for pieces in m.committed.values() for piece in pieces]
    return {
        "history": history,
        "agreed": agreed,
        "trained": trained,
        "committed": committed,
        "cursor": ledger.cursor,
    }


def simulate(every: int, fragments: int, overlap: int, alpha: float) -> np.ndarray:
    """[step, replica, block]: the first bias of each block, by the paper's equations."""
    start = np.array([layer.bias[0].item() for layer in net()])
    local, agreed, momentum = np.tile(start, (MEMBERS, 1)), start.copy(), np.zeros(4)
    period, seen, turn, flying = every // fragments, np.zeros((MEMBERS, fragments)), 1, None  # turn 0: start
    history = []

    def outer(blocks: np.ndarray, delta: np.ndarray, weights: np.ndarray, keep: float) -> None:
        mean = (delta * (weights / weights.sum())[:, None]).sum(0)
        momentum[blocks] = MOMENTUM * momentum[blocks] + mean
        agreed[blocks] -= RATE * (mean + MOMENTUM * momentum[blocks])
        local[:, blocks] = agreed[blocks] + keep * (local[:, blocks] - agreed[blocks])

    for step in range(1, STEPS + 1):
        for replica in range(MEMBERS):
            local[replica] += [change(replica, step, block) for block in range(4)]
        seen += TARGETS[:, None]
        if flying is not None and step in (flying[0] + overlap, STEPS):
            outer(*flying[1:], alpha)
            flying = None
        if step == STEPS:
            for fragment in range(fragments):
                blocks = np.arange(4)[np.arange(4) % fragments == fragment]
                outer(blocks, agreed[blocks] - local[:, blocks], seen[:, fragment], 0.0)
        elif step % period == 0:
            fragment, turn = turn % fragments, turn + 1
            blocks = np.arange(4)[np.arange(4) % fragments == fragment]
            flight = (blocks, agreed[blocks] - local[:, blocks], seen[:, fragment].copy())
            seen[:, fragment] = 0
            if overlap:
                flying = (step, *flight)
            else:
                outer(*flight, 0.0)
        history.append(local.copy())
    return np.array(history)


@pytest.mark.parametrize(
    ("every", "fragments", "overlap", "alpha"),
    [
        (6, 2, 2, 0.5),
        (4, 1, 2, 0.25),
        (6, 2, 0, 0.5),
        (8, 4, 1, 0.0),
        (8, 2, 3, 0.5),
    ],  # the last: one is under way
)
def test_weights_follow_the_equations_and_samples_balance(
    every: int, fragments: int, overlap: int, alpha: float
) -> None:
    found = run_ranks(MEMBERS, train, every, fragments, overlap, alpha)
    expected = simulate(every, fragments, overlap, alpha)
    for replica, result in enumerate(found):
        np.testing.assert_allclose(result["history"], expected[:, replica], atol=1e-5)
        assert merge(result["committed"]) == [(0, STEPS * BATCH)] and result["cursor"] == STEPS * BATCH
    assert found[0]["agreed"] == found[1]["agreed"]
    trained = [piece for result in found for piece in result["trained"]]
    assert sum(stop - start for start, stop in trained) == STEPS * BATCH
    assert merge(trained) == [(0, STEPS * BATCH)]


def test_more_fragments_than_blocks_are_refused() -> None:
    policy = StreamingDiLoCo(
        StaticTransport(None), Place(0, 1), Ledger(), BATCH, every=10, inside=StaticTransport(None), incarnation=0,
        learning_rate=RATE, momentum=MOMENTUM, fragments=5, overlap=0, merge=0.0,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="fragments is 5, but the model of this rank falls into 4 at most"):
        policy.attach(net())


def test_blocks_take_turns_and_nothing_is_left_out() -> None:
    sizes = {
        "embed.weight": 50,
        **{f"layers.{n}.mlp.weight": 10 for n in range(5)},
        "norm.weight": 2,
        "head.weight": 50,
    }
    parts = fragments_of(sizes, 2)
    assert [name for name in parts[0] if "layers" in name] == [f"layers.{n}.mlp.weight" for n in (0, 2, 4)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    assert abs(sum(sizes[n] for n in parts[0]) - sum(sizes[n] for n in parts[1])) <= 20


def test_layers_with_activations_between_them_take_turns_too() -> None:
    """Of torch's Sequential, whose numbers are those of everything in it."""
    sizes = {f"layers.{n}.{name}": 10 for n in (0, 2, 4, 6) for name in ("weight", "bias")}
    assert [{name.split(".")[1] for name in part} for part in fragments_of(sizes, 2)] == [
        {"0", "4"},
        {"2", "6"},
    ]
