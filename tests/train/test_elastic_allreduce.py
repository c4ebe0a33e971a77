"""All-reduce whose replicas die, hang and come back: the others make the step again, and what comes out is what one
undisturbed process computes."""

from __future__ import annotations

import itertools
import os
import signal
import time
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runs import Running, SlowNet, regression
from tutti.config.agreement import CodecName
from tutti.core import read_events
from tutti.sync import merge

BATCH, STEPS = 24, 90

ARGUMENTS: dict[str, Any] = {
    "loss": nn.MSELoss(),
    "data": regression(400),
    "validation": regression(64),
    "batch": BATCH,
    "steps": STEPS,
    "train__learning_rate": 0.01,
    "train__schedule": "constant",
    "train__precision": "fp32",
    "checkpoint__every": 20,
}


def members(run: Path, replica: int = 0) -> list[list[int]]:
    return [e["replicas"] for e in read_events(run, "membership") if e["replica"] == replica]


def attempts(run: Path, replica: int) -> list[int]:
    return [e["attempt"] for e in read_events(run, "run_started") if e["replica"] == replica]


def check_samples(run: Path, killed: int = 0) -> None:
    """Every step was made once, of its samples, each by one replica. So many of these were `killed`: each may have had
    no time to write down its part of its last step."""
    by_step: dict[int, list[tuple[int, int]]] = {}
    for event in read_events(run, "step"):
        if event["samples"]:
            by_step.setdefault(event["step"], []).extend((a, b) for a, b in event["cursor"])
    assert sorted(by_step) == list(range(1, STEPS + 1))
    unwritten = 0
    for step, pieces in by_step.items():
        first, last, whole = (step - 1) * BATCH, step * BATCH, merge(pieces)
        made = sum(stop - start for start, stop in pieces)
        assert made == sum(stop - start for start, stop in whole), f"step {step}: a sample twice"
        assert first <= whole[0][0] and whole[-1][1] <= last
        unwritten += made < BATCH
    assert unwritten <= killed, "a sample that nobody computed"


def plain(tmp_path: Path) -> dict[str, Tensor]:
    running = Running(tmp_path / "plain", model=net(0.0), workers=1, **ARGUMENTS)
    running.end()
    assert running.result is not None
    return running.result.model.state_dict()


def net(seconds: float) -> SlowNet:
    torch.manual_seed(0)
    return SlowNet(seconds)


def check_weights(running: Running, tmp_path: Path) -> None:
    assert running.result is not None
    for name, expected in plain(tmp_path).items():
        torch.testing.assert_close(running.result.model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)


class Counted(SlowNet):
    """Has statistics as BatchNorm has them: a buffer that follows from what this replica computed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return super().forward(x)


@pytest.mark.distributed
def test_survivors_make_the_step_again_and_the_dead_one_comes_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    torch.manual_seed(0)
    running = Running(run, model=Counted(0.05), workers=3, **ARGUMENTS)
    running.until_step(15)
    running.kill(rank=1)
    running.until_step(50)
    running.kill(rank=0)  # the one that leads
    report = running.end(120)
    assert report["state"] == "finished" and report["steps"] == STEPS and report["restarts"] == 2
    assert attempts(run, 2) == [0], "a survivor is not started again"
    seen = members(run, replica=2)
    assert seen[0] == [0, 1, 2] and [0, 2] in seen and [1, 2] in seen and seen[-1] == [0, 1, 2]
    healed = [e["replica"] for e in read_events(run, "healed")]
    assert sorted(healed) == [0, 1]
    assert running.result is not None
    passes = float(running.result.model.state_dict()["passes"])
    assert passes > STEPS - 10, "who came back goes on with the others' statistics"
    check_samples(run, killed=2)
    check_weights(running, tmp_path)


@pytest.mark.distributed
def test_a_stopped_replica_holds_nobody_up(tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = Running(run, model=net(0.05), workers=3, **ARGUMENTS)
    running.until_step(10)
    pid = running.kill(rank=2, number=signal.SIGSTOP)
    running.until(lambda e: e["kind"] == "membership" and e["replicas"] == [0, 1], "going on without it")
    os.kill(pid, signal.SIGCONT)
    report = running.end(120)
    assert report["state"] == "finished" and report["restarts"] == 0
    assert [e["replica"] for e in read_events(run, "healed")] == [2]
    assert members(run)[-1] == [0, 1, 2]
    check_samples(run)
    check_weights(running, tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codec, marks=() if codec == "fp32" else pytest.mark.slow)
        for codec in typing.get_args(CodecName)
    ],
)
def test_a_sharded_replica_dies_and_comes_back(codec: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sync = {"codec": codec, "matrix_rank": 1, "density": 0.25}
    running = Running(run, model=net(0.05), workers=2, layout=2, sync=sync, **ARGUMENTS)
    running.until_step(15)
    running.kill(rank=3)
    report = running.end(180)
    assert report["state"] == "finished" and report["restarts"] == 1
    assert attempts(run, 0) == [0]
    assert [0] in members(run) and members(run)[-1] == [0, 1]
    check_samples(run, killed=1)
    if codec == "fp32":
        check_weights(running, tmp_path)


class Uneven(SlowNet):
    """Takes `seconds` a sample on replica 0, twice that on replica 1, and from some step on as much as on 0."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            replica = int(os.environ["ROLE_NAME"].removeprefix("replica-"))
            self.calls = getattr(self, "calls", 0) + 1
            slow = replica == 1 and self.calls <= 40
            time.sleep(self.seconds * len(x) * (2 if slow else 1))
        return self.layers(x).squeeze(-1)


@pytest.mark.distributed
def test_shares_follow_the_replicas_speed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    torch.manual_seed(0)
    running = Running(run, model=Uneven(0.004), workers=2, train__micro_batch=BATCH, **ARGUMENTS)
    report = running.end(120)
    assert report["state"] == "finished"
    taken: dict[int, dict[int, int]] = {}
    for event in read_events(run, "step"):
        taken.setdefault(event["step"], {})[event["replica"]] = sum(b - a for a, b in event["cursor"])
    assert taken[1] == {0: 12, 1: 12}
    settled = [taken[step] for step in range(20, 40)]
    assert all(abs(shares[0] - 16) <= 2 for shares in settled), settled
    at_last = [taken[step] for step in range(STEPS - 20, STEPS)]
    assert all(abs(shares[0] - 12) <= 2 for shares in at_last), at_last
    check_samples(run)
    check_weights(running, tmp_path)


def times(run: Path, replica: int) -> list[float]:
    """When `replica` wrote that it had met the others; what it wrote just before, in the same tick, lies before."""
    return [e["time"] + 1e-4 for e in read_events(run, "membership") if e["replica"] == replica]


@pytest.mark.distributed
def test_faster_replicas_make_more_local_steps(tmp_path: Path) -> None:
    run, every = tmp_path / "run", 6
    torch.manual_seed(0)
    sync = {"policy": "local_sgd", "every": every}
    running = Running(run, model=Uneven(0.004), workers=2, sync=sync, train__micro_batch=BATCH, **ARGUMENTS)
    report = running.end(120)
    assert report["state"] == "finished" and report["steps"] == STEPS
    made = {
        replica: [
            sum(
                e["replica"] == replica and e["time"] > before and e["time"] < after
                for e in read_events(run, "step")
            )
            for before, after in itertools.pairwise(times(run, replica))
        ]
        for replica in (0, 1)
    }
    assert (made[0][0], made[1][0]) == (every, every)
    assert all(a + b == 2 * every for a, b in zip(made[0], made[1], strict=True)), made
    assert (made[0][4], made[1][4]) == (8, 4), made
    committed = [r for e in read_events(run, "commit") if e["replica"] == 0 for r in e["ranges"]]
    assert merge([(a, b) for a, b in committed]) == [(0, STEPS * BATCH)]
    assert report["tokens"] == STEPS * BATCH


@pytest.mark.distributed
def test_replicas_may_compute_in_different_precisions(tmp_path: Path) -> None:
    """One in bf16, one in fp32: the loss lies within the band of both."""
    losses = {}
    for name, precisions in (
        ("fp32", ("fp32", "fp32")),
        ("both", ("bf16", "fp32")),
        ("bf16", ("bf16", "bf16")),
    ):
        each = [{"precision": precision} for precision in precisions]
        running = Running(tmp_path / name, model=net(0.0), workers=2, each=each, **ARGUMENTS)
        report = running.end(120)
        losses[name] = report["validation_loss"]
        assert sorted(
            (e["replica"], e["precision"]) for e in read_events(tmp_path / name, "run_started")
        ) == list(enumerate(precisions))
    band = 2 * abs(losses["bf16"] - losses["fp32"]) + 1e-3 * losses["fp32"]
    assert losses["both"] != losses["fp32"]
    assert abs(losses["both"] - losses["fp32"]) <= band, losses
