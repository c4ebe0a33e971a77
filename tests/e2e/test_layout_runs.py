"""Whole runs in layouts: the curve of one process, through checkpoints from layout to layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import Here, events_of, losses_of, write_config

STEPS = (
    "train.steps=30",
    "train.warmup=1",
    "train.micro_batch=2",
    "evaluate.every=10",
    "checkpoint.every=10",
    "replicas=1",
)
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations `llama` and `gpt2`, and 30 steps of one process of the first."""
    from tutti.cli import run

    directory = tmp_path_factory.mktemp("layouts")
    before = Path.cwd()
    os.chdir(directory)
    try:
        for family, model, optimizer in (("llama", LLAMA, "adamw"), ("gpt2", GPT2, "muon")):
            train = {
                "steps": 30,
                "batch": 8,
                "precision": "fp32",
                "learning_rate": 0.003,
                "optimizer": optimizer,
            }
            write_config(directory, model={"config": model}, train=train).rename(f"{family}.yaml")
        assert run(["train", "llama.yaml", "name=llama", *STEPS, "--json"]) == 0
    finally:
        os.chdir(before)
    return directory


@pytest.fixture
def here(place: Path, tutti_here: Here, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(place)
    return tutti_here


def assert_same_curve(run: Path, reference: Path, steps: Sequence[int] = range(1, 31)) -> None:
    ours, theirs = losses_of(run), losses_of(reference)
    for step in steps:
        assert ours[step] == pytest.approx(theirs[step], rel=1e-3), f"step {step}"
    found, expected = (events_of(name, "validation")[-1]["loss"] for name in (run, reference))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_from_layout_to_layout_the_curve_goes_on(family: str, here: Here, place: Path) -> None:
    """Shard 4 for ten steps, tensor 2 × pipeline 2 for ten more, and one process to the end."""
    run = place / "runs" / f"{family}-chain"
    legs = [
        ("layout.shard=4", 10),
        ("layout={tensor: 2, pipeline: 2, schedule: interleaved}", 20),
        ("layout=1", 30),
    ]
    for number, (layout, stop) in enumerate(legs):
        again = ["--resume"] if number else []
        answer = here(
            "train", f"{family}.yaml", f"name={run.name}", *STEPS, layout, f"train.steps={stop}",
            "train.schedule=constant", *again, "--json",
        )  # fmt: skip
        assert answer.code == 0, answer.said
        assert answer.json["world_size"] == (4, 4, 1)[number]
    assert [event["step"] for event in events_of(run, "resumed")] == [10, 20]
    reference = place / "runs" / f"{family}-constant"
    assert (
        here("train", f"{family}.yaml", f"name={reference.name}", *STEPS, "train.schedule=constant").code == 0
    )
    assert_same_curve(run, reference)


@pytest.mark.parametrize(
    "layout", [pytest.param("{context: 2}", marks=pytest.mark.slow), "{pipeline: 2, schedule: gpipe}"]
)
def test_a_layout_does_not_change_the_curve(layout: str, here: Here, place: Path) -> None:
    answer = here("train", "llama.yaml", "name=other", f"layout={layout}", *STEPS, "--json")
    assert answer.code == 0, answer.said
    assert_same_curve(place / "runs/other", place / "runs/llama")
    samples = [event["samples"] for event in events_of(place / "runs/other", "step")]
    numbers = sorted(number for portion in samples for _, numbers in portion for number in numbers)
    whole = [event["samples"] for event in events_of(place / "runs/llama", "step")]
    assert numbers == sorted(number for portion in whole for _, numbers in portion for number in numbers)
    here("runs", "show", "other")
    import shutil

    shutil.rmtree(place / "runs/other")


@pytest.mark.slow
def test_diloco_over_tensor_parallel_replicas(here: Here, place: Path) -> None:
    """Two replicas that drift, each over two ranks, are two replicas of one rank each."""
    drift = ("sync=diloco", "sync.every=5", "replicas=2")
    for name, layout in (("drift-whole", "layout=1"), ("drift-split", "layout.tensor=2")):
        answer = here("train", "llama.yaml", f"name={name}", *STEPS, *drift, layout, "--json")
        assert answer.code == 0, answer.said
    ours, theirs = (events_of(place / "runs" / name, "validation") for name in ("drift-split", "drift-whole"))
    assert [event["step"] for event in ours] == [event["step"] for event in theirs]
    for found, expected in zip(ours, theirs, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_an_impossible_layout_is_refused_before_anything_is_written(here: Here, place: Path) -> None:
    answer = here("train", "llama.yaml", "name=never", "layout.tensor=8", *STEPS)
    assert answer.code == 2
    assert "tensor = 8 does not divide the 4 attention heads of llama" in answer.said
    assert "{pipeline: 2, tensor: 4}" in answer.said
    assert not (place / "runs/never").exists()
