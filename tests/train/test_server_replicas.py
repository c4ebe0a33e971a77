"""Proof: whole runs with a parameter server; a replica and the server are killed, each comes back, the samples balance,
and other policies go on from the checkpoint."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runs import Running, SlowNet, regression
from tutti.core import read_events
from tutti.train.checkpoints import newest_valid, read_manifest

BATCH = 16
pytestmark = pytest.mark.distributed


def arguments(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "loss": nn.MSELoss(),
        "data": regression(400),
        "validation": regression(64),
        "batch": BATCH,
        "train__learning_rate": 0.01,
        "train__schedule": "constant",
        "train__precision": "fp32",
        "checkpoint__every": 10,
    }
    return usual | changes


def net(seconds: float) -> SlowNet:
    torch.manual_seed(1)
    return SlowNet(seconds)


def counted(run: Path) -> Counter[int]:
    """How often each position counts: committed, less what died with the server."""
    found: Counter[int] = Counter()
    for kind, sign in (("commit", 1), ("undone", -1)):
        for event in read_events(run, kind):
            for start, stop in event["ranges"]:
                for position in range(start, stop):
                    found[position] += sign
    return found


def server_pid(run: Path) -> int:
    return int(json.loads((run / "live" / "rank--2.json").read_text())["pid"])


@pytest.mark.parametrize(
    ("staleness", "layout", "codec"),
    [
        pytest.param(2, 1, "fp32"),
        pytest.param(0, 1, "fp32", marks=pytest.mark.slow),
        pytest.param(0, 2, "fp32", marks=pytest.mark.slow),
        pytest.param("unbounded", 2, "fp32", marks=pytest.mark.slow),
        *(
            pytest.param(2, 2, codec, marks=pytest.mark.slow)
            for codec in ("fp16", "bf16", "int8", "int4", "topk")
        ),
    ],
)
def test_a_replica_and_the_server_are_killed_and_the_accounts_balance(
    staleness: int | str, layout: int, codec: str, tmp_path: Path
) -> None:
    run, steps = tmp_path / "run", 150
    sync = {"policy": "server", "staleness": staleness, "codec": codec, "density": 0.25}
    running = Running(run, model=net(0.05), workers=2, layout=layout, steps=steps, sync=sync, **arguments())
    running.until_step(12, rank=layout, seconds=150)
    running.kill(rank=2 * layout - 1)  # of replica 1
    running.until(lambda e: e["kind"] == "healed" and e["replica"] == 1, "replica 1 coming back", 120)
    running.until_step(35, seconds=120)
    pid = server_pid(run)
    os.kill(pid, signal.SIGKILL)
    running.until(lambda e: e["kind"] == "serving" and e["restored"], "another server", 120)
    report = running.end(120)
    assert (report["state"], report["steps"]) == ("finished", steps)
    # A rank that got its answer while another rank of its replica did not is started again with it.
    assert report["restarts"] == 2 or (layout > 1 and report["restarts"] > 2)
    assert server_pid(run) != pid
    if layout == 1:
        assert [e["attempt"] for e in read_events(run, "run_started") if e["replica"] == 0] == [0]
    assert [0] in [e["replicas"] for e in read_events(run, "membership")], "replica 0 went on alone"

    assert counted(run) == Counter(range(steps * BATCH)), "every sample of the run counts once"
    assert report["tokens"] == steps * BATCH, "and the report says so"
    assert any(e["member"] == "replica-1.0" for e in read_events(run, "return"))
    trained = {
        (e["replica"], position)
        for e in read_events(run, "step")
        for start, stop in e["cursor"]
        for position in range(start, stop)
    }
    for event in read_events(run, "commit"):
        replica = int(event["member"].removeprefix("replica-").split(".")[0])
        for start, stop in event["ranges"]:
            missing = [p for p in range(start, stop) if (replica, p) not in trained]
            # A replica that was killed after its push could not say so any more.
            assert not missing or event["member"] == "replica-1.0"
    path = newest_valid(run / "checkpoints")
    assert path is not None
    ledger = read_manifest(path).meta["ledger"]
    assert ledger == {"cursor": steps * BATCH, "returned": [], "loans": {}}
    assert report["validation_loss"] < 0.1


def last_losses(run: Path, step: int) -> float:
    found = [e["loss"] for e in read_events(run, "validation") if e["step"] == step]
    return found[-1]


@pytest.mark.slow
def test_checkpoints_go_from_policy_to_policy_with_the_optimizer(tmp_path: Path) -> None:
    """30 steps by all-reduce, 30 with a server, 30 by all-reduce are 90 steps by all-reduce, moments and all."""
    policies = ["allreduce", "server", "allreduce"]
    for name, order in (("mixed", policies), ("plain", ["allreduce"] * 3)):
        for number, policy in enumerate(order):
            running = Running(
                tmp_path / name, model=net(0.0), workers=2, steps=30 * (number + 1), resume=number > 0,
                sync={"policy": policy}, **arguments(evaluate__every=30),
            )  # fmt: skip
            assert running.end(200)["steps"] == 30 * (number + 1)
    for step in (30, 60, 90):
        mixed, plain = (last_losses(tmp_path / name, step) for name in ("mixed", "plain"))
        assert mixed == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_stopped_runs_save_everything_and_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sync = {"policy": "server", "staleness": 2, "codec": "int8"}
    running = Running(run, model=net(0.05), workers=2, steps=60, sync=sync, **arguments())
    running.until_step(15, seconds=150)
    running.stop(2)
    report = running.end(120)
    assert report["state"] == "interrupted" and 15 <= report["steps"] < 60
    path = newest_valid(run / "checkpoints")
    assert path is not None
    ledger = read_manifest(path).meta["ledger"]
    assert not ledger["loans"] and not ledger["returned"], "nobody was in the middle of anything"
    assert counted(run) == Counter(range(ledger["cursor"]))
    report = Running(run, model=net(0.0), workers=2, resume=True, steps=60, sync=sync, **arguments()).end(120)
    assert report["state"] == "finished" and report["steps"] == 60
    assert counted(run) == Counter(range(60 * BATCH))


#: Validation loss after the same samples, relative to all-reduce's. Each push is an update of its own, so there are as
#: many times more of them as there are replicas: the learning rate is halved for two.
BAND = 0.3


@pytest.mark.slow
def test_all_kinds_converge_as_all_reduce_does(tmp_path: Path) -> None:
    found = {}
    kinds: dict[str, dict[str, Any]] = {
        "allreduce": {"policy": "allreduce"},
        "0": {"policy": "server"},
        "2": {"policy": "server", "staleness": 2},
        "unbounded": {"policy": "server", "staleness": "unbounded"},
    }
    for name, sync in kinds.items():
        rate = 0.01 if name in ("allreduce", "0") else 0.005
        running = Running(
            tmp_path / name, model=net(0.0), workers=2, steps=200, sync=sync,
            **arguments(train__learning_rate=rate, train__schedule="linear"),
        )  # fmt: skip
        found[name] = running.end(120)["validation_loss"]
    assert found["0"] == pytest.approx(found["allreduce"], rel=1e-3)
    for name in ("2", "unbounded"):
        assert found[name] == pytest.approx(found["allreduce"], rel=BAND), found
