"""What goes wrong inside a replica that is split: nobody waits for ever, and it is told once."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Here, at_step, events_of, is_alive, losses_of, refused, worker_pid, write_config

RUN = Path("runs") / "r"
ALL_LEAVE_WITHIN_SECONDS = 30


def model(width: int) -> dict[str, Any]:
    """A Llama that every layout of two can split."""
    return {"config": {
        "model_type": "llama", "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }}  # fmt: skip


@pytest.mark.parametrize(
    "layout",
    [
        "{pipeline: 2}",
        *(pytest.param(f"{{{name}: 2}}", marks=pytest.mark.slow) for name in ("tensor", "shard")),
    ],
)
def test_a_killed_rank_does_not_keep_its_replica(layout: str, tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, replicas=1, model=model(32))
    seconds: list[float] = []

    def kill_and_watch() -> None:
        other = worker_pid(RUN, 0)
        os.kill(worker_pid(RUN, 1), signal.SIGKILL)
        killed = time.monotonic()
        while is_alive(other):
            time.sleep(0.05)
        seconds.append(time.monotonic() - killed)

    with at_step(RUN, 25, kill_and_watch):
        answer = tutti_here("train", "c.yaml", "train.steps=40", f"layout={layout}")
    assert (answer.code, answer.err) == (0, ""), answer.said
    assert "worker 1 was killed by SIGKILL" in answer.out
    assert answer.out.count("went on from the checkpoint of step 20") == 1
    assert seconds[0] < ALL_LEAVE_WITHIN_SECONDS
    assert sorted(losses_of(RUN)) == list(range(1, 41))


@pytest.mark.slow
def test_a_frozen_rank_of_a_replica_is_named_and_replaced(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, replicas=1, model=model(32))
    watch = "watch={stall_seconds: 3, kill_after_seconds: 6}"
    with at_step(RUN, 25, lambda: os.kill(worker_pid(RUN, 1), signal.SIGSTOP)):
        answer = tutti_here("train", "c.yaml", "train.steps=40", watch, "layout.tensor=2")
    assert answer.code == 0, answer.said
    assert [event["of_rank"] for event in events_of(RUN, "stalled")] == [1]
    assert sorted(losses_of(RUN)) == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["{tensor: 2}", "{pipeline: 2}"])
def test_a_checkpoint_of_another_model(layout: str, tutti_here: Here, tmp_path: Path) -> None:
    """Refused by what the run says of itself; and, put in its place, by what it holds."""
    write_config(tmp_path, replicas=1, model=model(32))
    short = ("train.steps=10", "checkpoint.every=5", f"layout={layout}")
    assert tutti_here("train", "c.yaml", *short, "--json").code == 0
    more = (f"layout={layout}", "train.steps=12", "checkpoint.every=5", "--resume")
    write_config(tmp_path, replicas=1, model=model(64))
    refused(tutti_here("train", "c.yaml", *more), "model.config")
    assert tutti_here("train", "c.yaml", *short, "name=other", "--json").code == 0
    write_config(tmp_path, replicas=1, model=model(32))
    for step in ("step-5", "step-10"):
        (found,) = RUN.glob(f"checkpoints/{step}*")
        (foreign,) = Path("runs/other").glob(f"checkpoints/{step}*")
        shutil.rmtree(found)
        shutil.copytree(foreign, found)
    began = time.monotonic()
    answer = tutti_here("train", "c.yaml", *more)
    assert answer.code == 2, answer.said
    assert answer.err.count("error: ") == 1 and "Traceback" not in answer.said
    assert "was saved with another model" in answer.err
    assert time.monotonic() - began < 60
