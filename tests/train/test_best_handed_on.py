"""With patience the best model is handed on, whatever came after it; without, a model that writes is the last."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tutti import api
from tutti.config import load_config
from tutti.core.events import read_events
from tutti.trained import load_trained


def test_a_language_model_that_learns_by_heart_is_handed_on_as_it_was_before(tmp_path: Path) -> None:
    dice = random.Random(0)
    for part, lines in (("train", 60), ("valid", 30)):  # nothing but frequencies of letters is worth learning
        text = "\n".join("".join(dice.choices("aaabbcdefgh", k=40)) for _ in range(lines))
        (tmp_path / f"{part}.txt").write_text(text)
    words = [
        *("name=few", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "replicas=1"),
        *(f"data.source={tmp_path / 'train.txt'}", f"data.validation_source={tmp_path / 'valid.txt'}"),
        *("data.tokenizer=characters", "data.sequence=32", "model=60K", "train.precision=fp32"),
        *("train.steps=400", "train.batch=32", "train.learning_rate=1e-2", "train.schedule=constant"),
        *("evaluate.every=10", "checkpoint.every=400", "train.patience=3"),
    ]
    report = api.train(load_config(None, words), console=False)
    run = tmp_path / "runs" / "few"
    losses = {event["step"]: event["loss"] for event in read_events(run, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert report["state"] == "finished" and best + 30 < report["steps"] < 400
    (enough,) = read_events(run, "enough")
    assert enough["best_step"] == best
    found = api.evaluate(run)
    assert found["step"] == best and found["loss"] == pytest.approx(losses[best], rel=1e-4)
    assert losses[max(losses)] > 1.005 * losses[best]  # the last one is another
    theirs = AutoModelForCausalLM.from_pretrained(run / "export").state_dict()
    for name, weight in load_trained(run).job.objective.model.state_dict().items():
        assert torch.equal(theirs[name].float(), weight.float()), name
    assert f"step {best:,}, whose model is handed on" in (run / "report.md").read_text()
