"""`sync: auto` as a person has it: measured, chosen, said, kept at a resume; refused or ended where it cannot be."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import Here, events_of, refused, write_config

from runs import Running, SlowNet, regression
from tutti.config import load_config
from tutti.core import LaunchError

RUN = Path("runs") / "r"
SHORT = ("train.steps=12", "evaluate.every=12", "checkpoint.every=6")


@pytest.mark.distributed
def test_a_run_measures_chooses_and_goes_on_with_it(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, sync="auto")
    answer = tutti_here("train", "c.yaml", *SHORT)
    assert answer.code == 0, answer.said
    assert "measuring steps, links and codecs" in answer.out
    measured = events_of(RUN, "sync_measured")
    assert sorted(event["rank"] for event in measured) == [0, 1]
    for event in measured:
        numbers = sum(torch.Size(shape).numel() for bucket in event["buckets"] for shape in bucket["shapes"])
        assert numbers == events_of(RUN, "run_started")[0]["parameters"]
        assert event["compute_seconds"] > 0 and event["members"] == 2
    sync = load_config(RUN / "config.yaml").sync
    assert "auto" not in sync.model_dump(exclude={"delay_compensation"}).values()  # which is policy server's
    assert sync.membership == "elastic"
    every = "" if sync.policy == "allreduce" else f" {sync.every}"
    said = events_of(RUN, "run_started")[0]["choices"]
    assert any(choice.startswith(f"sync = {sync.policy}{every} {sync.codec}: one step") for choice in said)
    since = time.time()
    again = tutti_here("train", "c.yaml", *SHORT, "train.steps=18", "--resume")
    assert again.code == 0, again.said
    assert load_config(RUN / "config.yaml").sync == sync and not events_of(RUN, "sync_measured", since)
    assert events_of(RUN, "finished")[-1]["step"] == 18


@pytest.mark.distributed
def test_a_worker_that_dies_while_it_measures_ends_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = {"workers": 3, "batch": 24, "steps": 30, "sync": "auto"}
    running = Running(run, model=SlowNet(0.3), loss=torch.nn.MSELoss(), data=regression(100), **slow)
    sign = run / "live" / "rank-1.json"
    deadline = time.monotonic() + 120
    while not (sign.is_file() and json.loads(sign.read_text())["phase"] == "rehearsal: steps"):
        assert time.monotonic() < deadline and running.error is None, running.error
        time.sleep(0.02)
    os.kill(int(json.loads(sign.read_text())["pid"]), signal.SIGKILL)
    with pytest.raises(LaunchError, match=r"not all workers could measure .*was killed by SIGKILL"):
        running.end(120)


def test_what_is_good_and_what_is_not(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    shown = tutti_here("validate", "c.yaml", "sync=auto")
    assert shown.code == 0, shown.said
    sync = yaml.safe_load(shown.out)["sync"]
    assert (sync["policy"], sync["codec"], sync["every"]) == ("auto", "auto", "auto")
    refused(tutti_here("validate", "c.yaml", "sync=atuo"), "sync.policy", "auto")
    refused(
        tutti_here("validate", "c.yaml", "sync={policy: auto, implementation: ddp}"), "sync.implementation"
    )
    refused(tutti_here("validate", "c.yaml", "sync={policy: diloco, every: never}"), "sync.every")
