"""A run that begins synchronously: the curve of all-reduce, then rounds, over members that come and go."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runs import Running, SlowNet, regression
from tutti.config.agreement import SyncConfig
from tutti.core import LossSum, Objective, read_events
from tutti.parallel import Split, World
from tutti.sync import AllReduce, LocalSGD, Place, StaticTransport, Summing, SynchronousStart, merge
from tutti.train.checkpoints import Checkpointer, newest_valid, read_manifest
from tutti.train.state import RunState, StateKeeper

TOGETHER, EVERY, STEPS, BATCH = 20, 5, 40, 16
ARGUMENTS: dict[str, Any] = {
    "loss": nn.MSELoss(),
    "data": regression(400),
    "validation": regression(64),
    "batch": BATCH,
    "steps": STEPS,
    "train__learning_rate": 0.01,
    "train__schedule": "constant",
    "train__precision": "fp32",
    "checkpoint__every": 5,
}
SYNC: dict[str, Any] = {
    "policy": "local_sgd",
    "every": EVERY,
    "synchronous_steps": TOGETHER,
    "shares": "even",
}


class SlowToReturn(SlowNet):
    """Takes three seconds more to be built again, so that the others make steps without it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            time.sleep(3)


def net(seconds: float, kind: type[SlowNet] = SlowNet) -> SlowNet:
    torch.manual_seed(0)
    return kind(seconds)


def losses(run: Path) -> dict[int, set[float]]:
    """Step → what was said of it, by any replica and attempt."""
    found: dict[int, set[float]] = defaultdict(set)
    for event in read_events(run, "step"):
        if "loss" in event:
            found[event["step"]].add(event["loss"])
    return found


def check_samples(run: Path, together: int) -> None:
    """Positions of the first steps were trained on once; those of rounds were committed once, or are waiting."""
    first = [
        (start, stop)
        for event in read_events(run, "step")
        if event["step"] <= together and event["samples"]
        for start, stop in event["cursor"]
    ]
    assert sum(stop - start for start, stop in first) == together * BATCH
    assert merge(first) == [(0, together * BATCH)]
    committed = {tuple(piece) for event in read_events(run, "commit") for piece in event["ranges"]}
    path = newest_valid(run / "checkpoints")
    assert path is not None
    ledger = read_manifest(path).meta["ledger"]
    waiting = [tuple(piece) for piece in ledger["returned"]]
    waiting += [tuple(piece) for loan in ledger["loans"].values() for piece in loan]
    pieces = [*committed, *waiting]
    assert sum(stop - start for start, stop in pieces) == ledger["cursor"] - together * BATCH
    assert merge(pieces) == [(together * BATCH, ledger["cursor"])], "nothing twice, nothing lost"


@pytest.mark.distributed
def test_the_curve_is_that_of_allreduce_also_across_a_stop_in_mid_phase(tmp_path: Path) -> None:
    plain = Running(tmp_path / "plain", model=net(0.0), workers=1, **ARGUMENTS)
    assert plain.end(120)["state"] == "finished"
    run = tmp_path / "run"
    running = Running(run, model=net(0.1), workers=2, sync=SYNC, **ARGUMENTS)
    running.until_step(6)
    running.stop(2)
    report = running.end(120)
    assert report["state"] == "interrupted" and 6 <= report["steps"] < TOGETHER
    report = Running(run, model=SlowNet(0.0), workers=2, resume=True, sync=SYNC, **ARGUMENTS).end(120)
    assert report["state"] == "finished" and report["steps"] == STEPS and report["restarts"] == 0
    expected, found = losses(tmp_path / "plain"), losses(run)
    for step in range(1, TOGETHER + 1):
        assert len(found[step]) == 1, "one speaks for all"
        assert found[step].pop() == pytest.approx(expected[step].pop(), rel=1e-5)
    assert all(len(found[step]) == 2 for step in range(TOGETHER + 2, STEPS)), "then each has its own"
    apart = {e["step"]: e["divergence"] for e in read_events(run, "membership") if e["step"] > TOGETHER}
    assert sorted(apart) == list(range(TOGETHER + EVERY, STEPS + 1, EVERY)) and all(apart.values())
    check_samples(run, TOGETHER)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("policy", "codec"), [("diloco", "fp32"), pytest.param("gossip", "int8", marks=pytest.mark.slow)]
)
def test_who_died_together_comes_back_when_the_others_are_apart(
    policy: str, codec: str, tmp_path: Path
) -> None:
    run, together, steps = tmp_path / "run", 30, 150
    sync = SYNC | {"policy": policy, "synchronous_steps": together, "codec": codec}
    arguments = ARGUMENTS | {"steps": steps}
    running = Running(run, model=net(0.05, SlowToReturn), workers=3, sync=sync, **arguments)
    running.until_step(15, rank=1)
    running.kill(rank=1)
    report = running.end(180)
    assert report["state"] == "finished" and report["steps"] == steps and report["restarts"] == 1
    starts = [e["attempt"] for e in read_events(run, "run_started") if e["replica"] != 1]
    assert starts == [0, 0], "the others were never restarted"
    members = [(e["step"], e["replicas"]) for e in read_events(run, "membership") if e["rank"] == 0]
    assert members[0] == (0, [0, 1, 2]) and (
        15 < next(step for step, who in members if who == [0, 2]) <= together
    )
    assert members[-1] == (steps, [0, 1, 2])
    healed = [e["step"] for e in read_events(run, "healed") if e["replica"] == 1]
    assert healed and healed[0] > together
    check_samples(run, together)


class Line(Objective):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4, bias=False))

    def forward(self, batch: Any) -> LossSum:
        raise NotImplementedError


def keeper_of(directory: Path, incarnation: int) -> tuple[StateKeeper, RunState]:
    """Of a replica that has just been started, and has made no step."""
    state, objective, transport, place = RunState(), Line(), StaticTransport(None), Place(0, 2)
    sync = SyncConfig(policy="local_sgd", every=EVERY, synchronous_steps=TOGETHER, codec="int4")
    together = AllReduce(
        transport, place, state.ledger, BATCH, bucket_bytes=1000, everyone=None,
        summing=Summing.of(sync, transport),
    )  # fmt: skip
    apart = LocalSGD(
        transport, place, state.ledger, BATCH, every=EVERY, inside=StaticTransport(None),
        incarnation=incarnation, summing=Summing.of(sync, transport),
    )  # fmt: skip
    policy = SynchronousStart(together, apart, TOGETHER)
    policy.attach(objective)
    keeper = StateKeeper(
        split=Split(objective, World.alone()),
        optimizers=[torch.optim.AdamW(objective.parameters())],
        policy=policy,
        policy_name="local_sgd",
        codec_name="int4",
        identity={},
        directory=directory,
        make_checkpointer=lambda at: Checkpointer(at, keep=2, rank=0, group=None, say=print),
        say=print,
    )
    return keeper, state


def test_who_is_started_again_between_meetings_has_what_was_lent_and_what_its_codec_owes(
    tmp_path: Path,
) -> None:
    keeper, state = keeper_of(tmp_path, 0)
    keeper.policy.start(TOGETHER, STEPS)
    state.step, state.rounds = TOGETHER + EVERY, 1
    state.ledger.lease("replica-1.0", 40)
    lent = state.ledger.state()
    (debt,) = keeper.policy.owed().values()
    debt.copy_(torch.arange(16.0).view(4, 4))
    keeper.save(state, best=False, wait=True)

    reborn, found = keeper_of(tmp_path, 1)
    assert reborn.resume(found) is not None
    assert lent["loans"].keys() == {"replica-0.0", "replica-1.0"} and found.ledger.state() == lent
    reborn.policy.start(found.step, STEPS)
    (owed,) = reborn.policy.owed().values()
    assert torch.equal(owed, debt)
