"""Groups that teach each other, as a user starts them: both exchanges, two sizes, a death, an interruption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import Here, events_of, refused, started, wait_for_step, worker_pid, write_config
from transformers import AutoModelForCausalLM

from tutti import api, load_config
from tutti.data.order import GlobalOrder
from tutti.train.cooperate.letters import letter_bytes

STEPS, BATCH, TOKENS, EVERY, BURN_IN, TOP = 60, 8, 32, 10, 20, 4
TRAIN = {"steps": STEPS, "batch": BATCH, "precision": "fp32", "learning_rate": 0.003}


def write_groups(directory: Path, exchange: str, groups: Any = 2, **changes: Any) -> Path:
    cooperate = {"exchange": exchange, "every": EVERY, "burn_in": BURN_IN, "top": TOP}
    return write_config(
        directory, **({"replicas": 1, "groups": groups, "cooperate": cooperate, "train": TRAIN} | changes)
    )


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def samples_of(run: Path) -> list[tuple[int, int]]:
    """What a group has computed, in the order of its steps; of a step that was done again, the last word."""
    by_step = {event["step"]: event for event in sorted(events_of(run, "step"), key=lambda e: e["time"])}
    return [
        (epoch, number)
        for step in sorted(by_step)
        for epoch, numbers in by_step[step]["samples"]
        for number in numbers
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_predictions(tutti_here: Here, tmp_path: Path) -> None:
    write_groups(tmp_path, "predictions")
    answer = tutti_here("train", "c.yaml", "train.batch=4")
    assert answer.code == 0, answer.said
    run = tmp_path / "runs" / "r"
    report = report_of(run)
    assert report["state"] == "finished" and report["best_group"] in (0, 1)
    tokens = api.prepare(load_config(tmp_path / "c.yaml")).splits["train"].tokens
    order, vocabulary, block = GlobalOrder(0, lambda epoch: (tokens - 1) // TOKENS), 24, 4 * EVERY
    for number, group in enumerate(report["groups"]):
        place = run / "groups" / str(number)
        AutoModelForCausalLM.from_pretrained(place / "export")
        assert (place / "report.md").is_file() and (place / "loss.png").is_file()
        # The order is the global one, in which groups take turns; the ledger counts as it does in any run.
        cursors = [tuple(piece) for e in events_of(place, "step") for piece in e["cursor"]]
        assert cursors == [(4 * step, 4 * step + 4) for step in range(STEPS)]
        turns = [2 * (turn // 2) + (turn + number) % 2 for turn in range(STEPS // EVERY)]
        wanted = [
            n for turn in turns for _, part in order.locate(turn * block, turn * block + block) for n in part
        ]
        assert samples_of(place) == [(0, sample) for sample in wanted]
        # Bytes are a formula: a letter every step once the burn-in is less than a block away.
        letters = STEPS - max(0, BURN_IN - 2 * EVERY)
        assert group["learnt"]["sent_bytes"] == letters * letter_bytes(4, TOKENS, TOP, vocabulary)
        assert group["learnt"]["lost"] == 0
    first, second = (samples_of(run / "groups" / str(number)) for number in (0, 1))
    assert first[:block] == second[block : 2 * block] and first[block : 2 * block] == second[:block]
    assert set(first) == set(second), "whole blocks hold the same samples"
    assert sum(group["learnt"]["taught"] for group in report["groups"]) > 0
    # The whole is a run for the verbs, and each group one of its own.
    assert tutti_here("runs", "show", "runs/r", "--json").json["best_group"] == report["best_group"]
    assert [row["name"] for row in tutti_here("runs", "list", "--json").json["runs"]] == ["r"]
    refused(tutti_here("evaluate", "runs/r"), "several groups", "runs/r/groups/0")
    assert tutti_here("evaluate", "runs/r/groups/1", "--json").code == 0
    refused(tutti_here("train", "c.yaml", "--resume", "cooperate.every=5"), "cooperate.every")
    refused(tutti_here("train", "c.yaml", "--resume", "groups=3"), "the number of groups")
    refused(tutti_here("train", "c.yaml"), "exists already")
    # On its own, a group would take other samples than its own from here on.
    refused(tutti_here("train", "runs/r/groups/0/config.yaml", "--resume", "train.steps=70"), "order")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_weights_of_another_size(tutti_here: Here, tmp_path: Path) -> None:
    write_groups(tmp_path, "weights", [{"model": "40K"}, {"model": "100K", "train": {"batch": 4}}])
    answer = tutti_here("train", "c.yaml")
    assert answer.code == 0, answer.said
    report = report_of(tmp_path / "runs" / "r")
    sizes = [group["parameters"] for group in report["groups"]]
    assert sizes[1] > 1.5 * sizes[0]
    for number, group in enumerate(report["groups"]):
        messages = sum(step + EVERY > BURN_IN for step in range(EVERY, STEPS + 1, EVERY))
        payload = messages * 2 * group["parameters"]
        assert payload < group["learnt"]["sent_bytes"] < payload + messages * 8000, "bf16, names and a config"
        place = tmp_path / "runs" / "r" / "groups" / str(number)
        assert all(not e["unusable"] and not e["lost"] for e in events_of(place, "cooperation"))
    assert all(group["learnt"]["taught"] > 0 for group in report["groups"])
    page = (tmp_path / "runs" / "r" / "report.md").read_text()
    assert f"Group {report['best_group']} is the best" in page and "(best)" in page


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_that_dies_for_good_does_not_stop_the_other(tmp_path: Path) -> None:
    write_groups(
        tmp_path,
        "weights",
        train=TRAIN | {"steps": 400},
        watch={"max_restarts": 0},
        cooperate={"exchange": "weights", "every": EVERY, "burn_in": BURN_IN, "max_age": 30},
    )
    run = tmp_path / "runs" / "r"
    with started(tmp_path, "train", "c.yaml") as command:
        wait_for_step(run / "groups" / "1", 50, command.began, seconds=300)
        os.kill(worker_pid(run / "groups" / "1", 0), signal.SIGKILL)
        answer = command.end(600)
    assert answer.code == 0, answer.said
    assert "group 1 failed: worker 0 was killed by SIGKILL" in answer.out
    report = report_of(run)
    assert [group["state"] for group in report["groups"]] == ["finished", "failed"]
    assert report["state"] == "finished" and report["groups"][0]["steps"] == 400
    # It learnt while the other lived, and not from what had become too old.
    notes = [e for e in events_of(run / "groups" / "0", "cooperation") if e["targets"]]
    assert sum(e["taught"] for e in notes) > 0
    assert notes[-1]["taught"] == 0
    with started(tmp_path, "train", "c.yaml", "--resume", "train.steps=410") as command:
        answer = command.end(600)
    assert answer.code == 0, answer.said
    assert [group["state"] for group in report_of(run)["groups"]] == ["finished", "finished"]
    assert [group["steps"] for group in report_of(run)["groups"]] == [410, 410]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_groups_go_on_and_see_every_sample_once(tmp_path: Path) -> None:
    write_groups(tmp_path, "predictions", train=TRAIN | {"steps": 160, "batch": 4})
    run = tmp_path / "runs" / "r"
    with started(tmp_path, "train", "c.yaml") as command:
        wait_for_step(run / "groups" / "0", 25, command.began, seconds=300)
        os.kill(command.process.pid, signal.SIGTERM)
        answer = command.end(200)
    assert answer.code == 130, answer.said
    assert report_of(run)["state"] == "interrupted"
    with started(tmp_path, "train", "c.yaml", "--resume") as command:
        answer = command.end(600)
    assert answer.code == 0, answer.said
    assert report_of(run)["state"] == "finished"
    seen = [samples_of(run / "groups" / str(number)) for number in (0, 1)]
    for samples in seen:
        assert len(samples) == len(set(samples)) == 160 * 4
    assert set(seen[0]) == set(seen[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("exchange", ["predictions", "weights"])
def test_groups_of_several_workers(tutti_here: Here, tmp_path: Path, exchange: str) -> None:
    """One group sharded over two workers and compiled, the other two replicas that meet now and then."""
    groups = [
        {"layout": 2, "train": {"compile": True}},
        {"replicas": 2, "sync": {"policy": "local_sgd", "every": 5}},
    ]
    write_groups(tmp_path, exchange, groups)
    answer = tutti_here("train", "c.yaml")
    assert answer.code == 0, answer.said
    report = report_of(tmp_path / "runs" / "r")
    assert [group["state"] for group in report["groups"]] == ["finished", "finished"]
    assert [group["world_size"] for group in report["groups"]] == [2, 2]
    assert sum(group["learnt"]["taught"] for group in report["groups"]) > 0
    assert not any(group["learnt"]["lost"] for group in report["groups"])


def test_a_group_that_cannot_be_is_refused_before_anything_starts(tutti_here: Here, tmp_path: Path) -> None:
    write_groups(tmp_path, "weights", [{}, {"model": "nowhere"}])
    refused(tutti_here("train", "c.yaml"), "nowhere")
    assert not (tmp_path / "runs").exists()
    write_groups(tmp_path, "weights", [{}, {"layout": {"tensor": 2}}])
    refused(tutti_here("train", "c.yaml"), "layout.tensor", "group 1")
    assert not (tmp_path / "runs").exists()
