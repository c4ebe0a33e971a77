"""One copy of the model over two ranks: the curve of one rank, resumed as one, exported as the model it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import Here, events_of, losses_of, write_config

STEPS = ("train.steps=40", "checkpoint.every=20", "evaluate.every=20")
SHARDED, WHOLE = ("replicas=1", "layout=2"), ("replicas=1", "layout=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: 40 steps undisturbed on one rank. `sharded`: 40 steps on two that share one copy."""
    from tutti.cli import run

    directory = tmp_path_factory.mktemp("sharded")
    write_config(directory)
    before = Path.cwd()
    os.chdir(directory)
    try:
        assert run(["train", "c.yaml", "name=whole", *WHOLE, *STEPS, "--json"]) == 0
        assert run(["train", "c.yaml", "name=sharded", *SHARDED, *STEPS, "--json"]) == 0
    finally:
        os.chdir(before)
    return directory


@pytest.fixture
def here(place: Path, tutti_here: Here, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(place)
    return tutti_here


def assert_same_curve(run: Path, reference: Path) -> None:
    ours, theirs = losses_of(run), losses_of(reference)
    assert sorted(ours) == sorted(theirs)
    for step, loss in theirs.items():
        assert ours[step] == pytest.approx(loss, rel=1e-3), f"step {step}"


def test_sharding_does_not_change_the_curve(place: Path) -> None:
    whole = losses_of(place / "runs/whole")
    assert whole[40] < 0.9 * whole[1]  # it learns: a curve that stands still would agree with any
    assert_same_curve(place / "runs/sharded", place / "runs/whole")


@pytest.mark.parametrize(("first", "then"), [(SHARDED, WHOLE), (WHOLE, SHARDED)], ids=["2 to 1", "1 to 2"])
def test_a_run_goes_on_in_another_layout(
    first: tuple[str, ...], then: tuple[str, ...], here: Here, place: Path
) -> None:
    """Saved at step 20 in one layout, continued in the other: the curve of the undisturbed run."""
    was, name = ("sharded", "two") if first is SHARDED else ("whole", "one")
    run = place / "runs" / name
    shutil.copytree(place / "runs" / was, run)
    shutil.rmtree(run / "checkpoints" / "step-40")
    answer = here("train", "c.yaml", f"name={name}", *then, *STEPS, "--resume", "--json")
    assert answer.code == 0, answer.said
    assert [event["step"] for event in events_of(run, "resumed")] == [20]
    assert answer.json["world_size"] == (1 if then is WHOLE else 2)
    assert_same_curve(run, place / "runs/whole")


OPEN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
assert "tutti" not in sys.modules
ids = tokenizer("the model learns", return_tensors="pt").input_ids
with torch.no_grad():
    torch.save((ids, model(ids).logits), sys.argv[2])
"""


@pytest.mark.slow
def test_the_export_is_the_trained_model(here: Here, place: Path, tmp_path: Path) -> None:
    """Plain transformers, in a process that has never heard of Tutti, computes what the trained weights compute."""
    from tutti.trained import load_trained

    job, _, step = load_trained(place / "runs/sharded")
    assert step == 40
    answer = here("export", "sharded", "--to", str(tmp_path / "out"))
    assert answer.code == 0, answer.said
    for directory in (place / "runs/sharded/export", tmp_path / "out"):
        logits = tmp_path / "logits.pt"
        subprocess.run([sys.executable, "-c", OPEN, directory, logits], check=True, timeout=120)
        ids, theirs = torch.load(logits)
        with torch.no_grad():
            ours = job.objective.model(ids).logits
        assert ids.numel() > 3
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_evaluation_agrees_with_the_run(here: Here, place: Path) -> None:
    """`tutti evaluate` of the last checkpoint on the same samples gives the run's last validation loss."""
    last = events_of(place / "runs/sharded", "validation")[-1]
    answer = here("evaluate", "sharded", "--samples", "8", "--json")
    assert answer.json["step"] == last["step"] == 40
    assert answer.json["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert answer.json["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-5)
