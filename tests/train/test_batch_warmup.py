"""A batch that grows: what is learned is what a loop of plain torch learns from the same samples, whoever computes
them, who dies, and who goes on later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from runs import Running, SlowNet, regression
from tutti.config import load_config
from tutti.core import CheckpointError, ConfigError, read_events
from tutti.data import GlobalOrder
from tutti.resolve import Facts, resolve
from tutti.sync import merge
from tutti.sync.batches import BatchSizes

SAMPLES, BATCH, START, GROWING, STEPS = 150, 24, 6, 12, 20
ARGUMENTS: dict[str, Any] = {
    "loss": nn.MSELoss(),
    "data": regression(SAMPLES),
    "batch": BATCH,
    "steps": STEPS,
    "train__batch_warmup": {"start": START, "steps": GROWING},
    "train__learning_rate": 0.01,
    "train__schedule": "constant",
    "train__warmup": 0,
    "train__weight_decay": 0.0,
    "train__clip": None,
    "train__precision": "fp32",
    "checkpoint__every": 5,
}
#: 24 samples, reached in twelve equal parts of 1.5.
SIZES = [6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22, *[24] * 8]


def net(seconds: float = 0.0) -> SlowNet:
    torch.manual_seed(0)
    return SlowNet(seconds)


def by_hand() -> dict[str, Tensor]:
    """AdamW over the global order, so many samples a step."""
    model, (x, y) = net(), regression(SAMPLES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    order, cursor = GlobalOrder(0, lambda _: SAMPLES), 0
    for size in SIZES:
        numbers = torch.cat([torch.from_numpy(some) for _, some in order.locate(cursor, cursor + size)])
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[numbers]), y[numbers]).backward()
        optimizer.step()
        cursor += size
    return model.state_dict()


def check(running: Running, *, unwritten: int = 0) -> None:
    """The weights, and that every step took its samples, each once, one behind the other."""
    assert running.result is not None
    for name, expected in by_hand().items():
        torch.testing.assert_close(running.result.model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)
    by_step: dict[int, list[tuple[int, int]]] = {}
    for event in read_events(running.run, "step"):
        if event["samples"]:
            by_step.setdefault(event["step"], []).extend((a, b) for a, b in event["cursor"])
    assert sorted(by_step) == list(range(1, STEPS + 1))
    for step, pieces in by_step.items():
        first, last = sum(SIZES[: step - 1]), sum(SIZES[:step])
        whole = merge(pieces)
        assert first <= whole[0][0] and whole[-1][1] <= last
        unwritten -= sum(stop - start for start, stop in whole) < last - first
    assert unwritten >= 0, "a sample that nobody computed"


def test_the_sizes() -> None:
    sizes = BatchSizes(BATCH, START, GROWING)
    assert [sizes.at(step) for step in range(1, STEPS + 1)] == SIZES
    assert [BatchSizes(8).at(step) for step in (1, 2, 100)] == [8, 8, 8]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 40), st.integers(1, 150))
def test_the_sum_and_its_inverse(start: int, more: int, growing: int, steps: int) -> None:
    sizes = BatchSizes(start + more, start, growing)
    taken = [sizes.at(step) for step in range(1, steps + 1)]
    assert taken == sorted(taken) and taken[0] == start and sizes.at(growing + 1) == start + more
    assert sizes.total(steps) == sum(taken)
    assert sizes.steps_for(sum(taken)) == steps


def test_one_worker_learns_what_plain_torch_learns(tmp_path: Path) -> None:
    running = Running(tmp_path / "one", model=net(), workers=1, **ARGUMENTS)
    running.end()
    check(running)


def test_two_that_stop_and_one_that_goes_on(tmp_path: Path) -> None:
    first = ARGUMENTS | {"steps": 7}
    Running(tmp_path / "run", model=net(), workers=2, sync={"membership": "fixed"}, **first).end(120)
    with pytest.raises(CheckpointError, match="batch_warmup = '6 12', this run has '6 3'"):
        other = ARGUMENTS | {"train__batch_warmup": {"start": START, "steps": 3}}
        Running(tmp_path / "run", model=net(), workers=1, resume=True, **other).end()
    running = Running(tmp_path / "run", model=net(), workers=1, resume=True, **ARGUMENTS)
    running.end()
    check(running)


@pytest.mark.distributed
def test_one_of_three_dies_while_it_grows_and_comes_back(tmp_path: Path) -> None:
    running = Running(tmp_path / "run", model=net(0.05), workers=3, **ARGUMENTS)
    running.until_step(4)
    running.kill(rank=1)
    report = running.end(120)
    assert report["state"] == "finished" and report["restarts"] == 1
    check(running, unwritten=1)


def test_epochs_are_as_many_samples() -> None:
    words: list[Any] = [
        "name=x",
        "train.epochs=2",
        "train.batch=24",
        "train.batch_warmup={start: 6, steps: 12}",
    ]
    facts = Facts(parameters=1000, tokens_per_sample=8, validation_samples=10, samples=SAMPLES)
    resolved = resolve(load_config(None, [*words, "replicas=2", "train.precision=fp32"]), facts)
    # 168 in the first twelve, 132 more are 5.5 steps.
    assert resolved.config.train.steps in (17, 18)
    assert any("6 samples in the first step, 24 from step 13 on" in said for said in resolved.choices)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.batch=6"], "has to be less than train.batch, 6"),
        (["sync=diloco"], "needs sync.policy: allreduce"),
        (["sync=auto"], "not auto"),
        (["groups=2"], "exclude each other"),
        (["replicas=4", "layout={shard: 2}"], "fewer samples than the 8 workers"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, ["name=x", "train.batch_warmup={start: 6, steps: 12}", *words])
    assert said in str(refused.value)
