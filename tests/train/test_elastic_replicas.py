"""Proof: {shard: 2} × 2 replicas under DiLoCo; one replica loses a rank to SIGKILL in mid-round. The other goes
on, the dead one returns and is healed, the samples balance, and one process continues the curve."""

from __future__ import annotations

import os
import time
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from runs import Running, SlowNet, regression
from tutti.config.agreement import CodecName, PolicyName, SyncConfig
from tutti.core import read_events
from tutti.sync import inadmissible, merge
from tutti.train.checkpoints import newest_valid, read_manifest

SAMPLES, BATCH, EVERY, STEPS = 400, 16, 3, 90

ARGUMENTS: dict[str, Any] = {
    "loss": nn.MSELoss(),
    "data": regression(SAMPLES),
    "validation": regression(64),
    "batch": BATCH,
    "train__learning_rate": 0.01,
    "train__schedule": "constant",
    "train__precision": "fp32",
    "checkpoint__every": EVERY,
}


def by_round(run: Path, kind: str) -> dict[int, dict[str, list[tuple[int, int]]]]:
    """Round → member → ranges. Every member writes the whole account, and all must write the same."""
    account: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for event in read_events(run, kind):
        ranges = [(start, stop) for start, stop in event["ranges"]]
        known = account.setdefault(event["round"], {}).setdefault(event["member"], ranges)
        assert known == ranges, f"members disagree on {kind} of round {event['round']}"
    return account


def size(ranges: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


class SlowToReturn(SlowNet):
    """Takes three seconds to be built again, so that the others make rounds without it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            time.sleep(3)


#: Every policy whose replicas come and go, with every codec; all but one in the long suite.
PAIRS = [
    pytest.param(policy, codec, marks=() if (policy, codec) == ("diloco", "fp32") else pytest.mark.slow)
    for policy in typing.get_args(PolicyName)
    for codec in typing.get_args(CodecName)
    if policy not in ("allreduce", "server")
    and inadmissible(SyncConfig(policy=policy, codec=codec), "fp32") is None
]


@pytest.mark.distributed
@pytest.mark.parametrize(("policy", "codec"), PAIRS)
def test_a_replica_dies_in_mid_round_and_comes_back(policy: str, codec: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sync = diloco() | {"policy": policy, "codec": codec, "density": 0.25, "matrix_rank": 1}
    running = Running(run, model=SlowToReturn(0.05), workers=2, layout=2, steps=STEPS, sync=sync, **ARGUMENTS)
    running.until_step(2 * EVERY + 2, rank=2)
    running.kill(rank=3)  # half of replica 1; its other half cannot go on alone
    report = running.end(180)
    assert report["state"] == "finished" and report["steps"] == STEPS
    assert report["restarts"] == 1 and report["world_size"] == 4

    # The other replica was never restarted, and took part in rounds alone.
    starts = [e for e in read_events(run, "run_started") if e["replica"] == 0]
    assert [e["attempt"] for e in starts] == [0]
    members = [e["replicas"] for e in read_events(run, "membership") if e["replica"] == 0]
    assert [0] in members, "replica 0 went on alone while replica 1 was dead"
    assert members[0] == [0, 1] and members[-1] == [0, 1], "both began, and both are there at the end"
    healed = [e for e in read_events(run, "healed") if e["replica"] == 1]
    assert healed and all(e["step"] > 2 * EVERY for e in healed)

    check_accounts(run)
    check_resume(run)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_replica_dies_while_fragments_are_on_their_way(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sync = diloco() | {"every": 6, "fragments": 2, "overlap": 1}
    running = Running(run, model=SlowToReturn(0.1), workers=2, layout=2, steps=STEPS, sync=sync, **ARGUMENTS)
    running.until_step(14, rank=2)
    running.kill(rank=3)
    report = running.end(180)
    assert report["state"] == "finished" and report["steps"] == STEPS and report["restarts"] == 1
    members = [e["replicas"] for e in read_events(run, "membership") if e["replica"] == 0]
    assert [0] in members and members[0] == [0, 1] and members[-1] == [0, 1]
    assert [e["replica"] for e in read_events(run, "healed")] == [1, 1]
    check_accounts(run, whole_rounds=False)
    check_resume(run)


def diloco() -> dict[str, Any]:
    return {"policy": "diloco", "every": EVERY, "outer_learning_rate": 0.7, "outer_momentum": 0.5}


def check_accounts(run: Path, *, whole_rounds: bool = True) -> None:
    """Every position was committed exactly once, or is waiting; and who committed has trained on it. `whole_rounds`:
    a lease is settled whole at the next meeting."""
    leases, commits, returns = (by_round(run, kind) for kind in ("lease", "commit", "return"))
    committed = [piece for members in commits.values() for pieces in members.values() for piece in pieces]
    path = newest_valid(run / "checkpoints")
    assert path is not None
    ledger = read_manifest(path).meta["ledger"]
    waiting = [(start, stop) for start, stop in ledger["returned"]]
    waiting += [(start, stop) for loan in ledger["loans"].values() for start, stop in loan]
    assert size(committed) + size(waiting) == ledger["cursor"]
    assert merge([*committed, *waiting]) == [(0, ledger["cursor"])], "nothing twice, nothing lost"
    assert any(returns.values()), "what the dead replica had leased came back"
    for number, members in leases.items() if whole_rounds else ():
        for member, ranges in members.items():
            after = commits.get(number + 1, {}).get(member, []) + returns.get(number + 1, {}).get(member, [])
            assert size(after) in (0, size(ranges)), f"{member}: the lease of round {number} is settled whole"

    # What a member committed in a round is what its two ranks wrote into their step events.
    for number, members in commits.items():
        for member, ranges in members.items():
            replica = int(member.removeprefix("replica-").split(".")[0])
            positions = np.concatenate([np.arange(*piece) for piece in ranges])
            trained = [
                position
                for event in read_events(run, "step")
                if event["replica"] == replica
                for start, stop in event["cursor"]
                for position in range(start, stop)
            ]
            assert set(positions.tolist()) <= set(trained), (
                f"{member} committed samples that it never saw in {number}"
            )


def check_resume(run: Path) -> None:
    """One plain process continues where four ranks stopped."""
    before = list(read_events(run, "validation"))[-1]
    running = Running(run, model=SlowNet(0.0), workers=1, resume=True, steps=STEPS + 30, **ARGUMENTS)
    report = running.end()
    assert report["state"] == "finished" and report["steps"] == STEPS + 30
    losses = [e["loss"] for e in sorted(read_events(run, "step"), key=lambda e: e["time"]) if "loss" in e]
    after = losses[-30:]
    early = losses[:5]
    assert np.mean(after[:5]) < 0.5 * np.mean(early), (
        "the curve goes on from where it was, not from the start"
    )
    assert report["validation_loss"] <= 1.1 * before["loss"]
    assert not any(b["step"] - a["step"] > 1 for a, b in pairwise(steps_of_last_attempt(run)))


def steps_of_last_attempt(run: Path) -> list[dict[str, Any]]:
    start = max(e["time"] for e in read_events(run, "run_started"))
    return [e for e in read_events(run, "step") if e["time"] > start and e["rank"] == 0]


@pytest.mark.distributed
def test_all_replicas_asked_to_stop_meet_save_and_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = Running(run, model=SlowNet(0.05), workers=2, steps=40, sync=diloco(), **ARGUMENTS)
    running.until_step(EVERY + 2)
    running.stop(2)
    report = running.end()
    assert report["state"] == "interrupted"
    assert EVERY < report["steps"] < 40
    report = Running(
        run, model=SlowNet(0.0), workers=2, resume=True, steps=40, sync=diloco(), **ARGUMENTS
    ).end()
    assert report["state"] == "finished" and report["steps"] == 40
    path = newest_valid(run / "checkpoints")
    assert path is not None
    ledger = read_manifest(path).meta["ledger"]
    committed = [
        piece
        for members in by_round(run, "commit").values()
        for pieces in members.values()
        for piece in pieces
    ]
    assert merge([*committed, *map(tuple, ledger["returned"])]) == [(0, ledger["cursor"])]


@pytest.mark.distributed
def test_those_who_gossip_go_on_alone_until_the_next_meeting_when_one_dies(tmp_path: Path) -> None:
    run, round_ = tmp_path / "run", 30
    sync = {"policy": "gossip", "every": round_, "codec": "int8"}
    running = Running(run, model=SlowNet(0.03), workers=3, steps=3 * round_, sync=sync, **ARGUMENTS)
    running.until_step(round_ + 5, rank=1)
    running.kill(rank=1)
    report = running.end(120)
    assert report["state"] == "finished" and report["steps"] == 3 * round_ and report["restarts"] == 1
    starts = [e["attempt"] for e in read_events(run, "run_started") if e["replica"] != 1]
    assert starts == [0, 0], "the others were never restarted"
    steps = [e for e in read_events(run, "step") if e["replica"] != 1]
    for replica in (0, 2):  # between the death and the next meeting nothing that one gives moves the other
        moved = {e["step"]: e.get("divergence") for e in steps if e["replica"] == replica}
        assert all(moved[step] is None for step in (round_, 2 * round_, 3 * round_)), "all meet instead"
        assert any(moved[step] > 1e-5 for step in range(1, round_))
        assert all(moved[step] < 1e-5 for step in range(round_ + 15, 2 * round_)), moved
    assert list(read_events(run, "membership"))[-1]["replicas"] == [0, 1, 2]
    check_accounts(run)


@pytest.mark.slow
@pytest.mark.distributed
def test_who_comes_back_after_the_end_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = Running(run, model=SlowToReturn(0.04), workers=2, steps=STEPS, sync=diloco(), **ARGUMENTS)
    running.until_step(STEPS - 2 * EVERY, rank=0)
    running.kill(rank=1)
    report = running.end(120)
    assert (report["state"], report["steps"], report["restarts"]) == ("finished", STEPS, 1)
    assert [e["rank"] for e in read_events(run, "finished")] == [0]
    assert not any(e["attempt"] for e in read_events(run, "run_started"))
