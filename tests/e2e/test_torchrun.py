"""The same command in a world that plain `torchrun` started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from commands import Here, events_of, losses_of, started, worker_pid, write_config

TWO = ("--nproc-per-node", "2", "-m", "tutti", "train", "c.yaml")
#: What torchrun says about itself is not ours; what ranks say must not stand twice on the terminal.
SHORT = ("train.steps=20", "checkpoint.every=10")


@pytest.mark.parametrize(
    "how",
    [
        [],
        pytest.param(["sync={policy: diloco, every: 5}"], marks=pytest.mark.slow),
        pytest.param(["layout=2"], marks=pytest.mark.slow),
    ],
    ids=["allreduce", "diloco", "shard"],
)
def test_two_ranks_train_and_one_reports(how: list[str], tmp_path: Path) -> None:
    write_config(tmp_path, replicas="auto")
    with started(tmp_path, *TWO, *SHORT, *how, module="torch.distributed.run") as command:
        answer = command.end(120)
    assert answer.code == 0, answer.said
    report = json.loads((command.run / "report.json").read_text())
    assert (report["state"], report["steps"], report["world_size"]) == ("finished", 20, 2)
    assert report["replicas"] == (1 if how == ["layout=2"] else 2)
    assert report["validation_bits_per_byte"] < 8
    assert report["bytes_sent"] > 0
    assert answer.out.count("run r") == 1 and answer.out.count("finished at step 20") == 1
    assert answer.out.count("rehearsed in") == 1
    assert answer.out.count("chosen: replicas") == 1
    assert "Traceback" not in answer.said
    assert f"torchrun --nproc-per-node 2 -m tutti train c.yaml {SHORT[1]}" in answer.out
    assert (command.run / "loss.png").stat().st_size > 1000
    assert sorted(losses_of(command.run)) == list(range(1, 21))


@pytest.mark.slow
def test_a_frozen_rank_is_named_and_ended_and_torchrun_starts_both_again(
    tutti_here: Here, tmp_path: Path
) -> None:
    write_config(tmp_path)
    assert tutti_here("train", "c.yaml", *SHORT, "--json").code == 0
    # A sign of life of an earlier world, whose process id belongs to somebody else by now.
    stranger = subprocess.Popen(["sleep", "300"])
    sign = {"rank": 7, "pid": stranger.pid, "time": 0, "step": 3, "phase": "compute", "stack": []}
    (tmp_path / "runs/r/live/rank-7.json").write_text(json.dumps(sign))
    two = ("--max-restarts", "1", *TWO)
    watch = "watch={stall_seconds: 3, kill_after_seconds: 6}"
    more = ("train.steps=60", "checkpoint.every=10", watch, "--resume")
    with started(tmp_path, *two, *more, module="torch.distributed.run") as command:
        command.until_step(35)
        os.kill(worker_pid(command.run, 1), signal.SIGSTOP)
        answer = command.end(180)
    alive = stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert answer.code == 0, answer.said
    assert alive
    stalled = events_of(command.run, "stalled")
    assert [event["of_rank"] for event in stalled] == [1], stalled
    assert answer.out.count("rank 1 has given no sign of life") == 1
    assert sorted(losses_of(command.run)) == list(range(1, 61))


@pytest.mark.slow
def test_one_error_of_many_ranks_is_said_once(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "text.txt").write_bytes(b"")
    with started(tmp_path, *TWO, module="torch.distributed.run") as command:
        answer = command.end()
    assert answer.code != 0
    ours = answer.err.partition("torch.distributed.elastic")[0]
    assert answer.err.count("error: ") == 1 and "text.txt" in ours and "empty" in ours
    assert not command.run.exists()


@pytest.mark.slow
def test_sigterm_saves_and_the_next_world_goes_on(tutti_here: Here, tmp_path: Path) -> None:
    """torchrun passes SIGTERM on to its ranks; afterwards a plain `tutti train` continues what it saved."""
    write_config(tmp_path)
    with started(tmp_path, *TWO, "train.steps=5000", module="torch.distributed.run") as command:
        command.until_step(10)
        command.process.send_signal(signal.SIGTERM)
        answer = command.end()
    assert "interrupted after step" in answer.out
    saved = max(event["step"] for event in events_of(command.run, "checkpoint"))
    assert saved == max(losses_of(command.run))
    done = tutti_here("train", "c.yaml", f"train.steps={saved + 5}", "--resume", "--json")
    assert (done.code, done.json["steps"]) == (0, saved + 5), done.said
    assert sorted(losses_of(command.run)) == list(range(1, saved + 6))


@pytest.mark.slow
def test_an_error_inside_the_workers_is_said_once(tutti_here: Here, tmp_path: Path) -> None:
    """Both ranks find that no checkpoint can be used; the terminal hears it once, in words."""
    write_config(tmp_path)
    assert tutti_here("train", "c.yaml", *SHORT, "--json").code == 0
    for path in (tmp_path / "runs/r/checkpoints").rglob("*.distcp"):
        path.write_bytes(path.read_bytes()[:-1])
    more = ("train.steps=30", "--resume")
    with started(tmp_path, *TWO, *more, module="torch.distributed.run") as command:
        answer = command.end()
    assert answer.code != 0
    ours = answer.err.partition("torch/distributed/elastic")[0]
    assert "Traceback" not in ours
    assert answer.err.count("no sound checkpoint") == 1
    assert re.search("error: Rank [01] failed", ours) and "CheckpointError" in ours
