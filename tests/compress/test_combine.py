"""`tutti combine` on real runs, against plain transformers and NumPy."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from encoders import write_encoder, write_intents
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import load_config
from tutti.core import RunError

#: Enough to be better than chance, and to differ.
STEPS = (20, 30, 60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("combine")
    write_encoder(place / "bert")
    write_intents(place)
    for seed, steps in enumerate(STEPS):
        train(place, f"run-{seed}", f"train.seed={seed}", f"train.steps={steps}")
    return place


def train(place: Path, name: str, *words: str) -> None:
    config = load_config(
        None,
        [
            *(f"name={name}", f"runs={place / 'runs'}", "task=classify", f"data.cache={place / 'cache'}"),
            *(f"data.source={place / 'intents.tsv'}", "data.sequence=32", "data.validation=0.25"),
            *(f"model={place / 'bert'}", "model.seed=0", "data.test=0.15", "evaluate.every=10"),
            *("train.precision=fp32", "train.learning_rate=3e-3", "train.batch=16", "replicas=1", *words),
        ],
    )
    api.train(config, console=False)


def runs(place: Path) -> list[Path]:
    return [place / "runs" / f"run-{seed}" for seed in range(len(STEPS))]


def told(place: Path, directories: list[Path], examples: list[dict[str, str]]) -> np.ndarray:
    """Logits of plain transformers [models, examples, labels]."""
    tokenizer = AutoTokenizer.from_pretrained(directories[0])
    models = [AutoModelForSequenceClassification.from_pretrained(one) for one in directories]
    with torch.no_grad():
        said = [
            [model(**tokenizer(one["text"], return_tensors="pt")).logits[0].numpy() for one in examples]
            for model in models
        ]
    return np.array(said)


def test_each_way_is_what_it_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = place / "one"
    report = api.combine(runs(place), destination=destination, console=False)
    lines = {(line["way"], len(line["runs"])): line for line in report["lines"]}
    prepared = api.prepare(load_config(runs(place)[0] / "config.yaml"))
    held = prepared.parts["validation"].read()  # type: ignore[union-attr]
    right = np.array([one["labels"][0] for one in held])
    exports = [run / "export" for run in runs(place)]
    logits = told(place, exports, held)
    names = AutoModelForSequenceClassification.from_pretrained(exports[0]).config.id2label
    said = np.vectorize(names.get)
    alone = [line["quality"]["accuracy"] for line in report["lines"] if line["way"] == "alone"]
    assert alone == pytest.approx([(said(one.argmax(1)) == right).mean() for one in logits])
    together = (said(logits.mean(0).argmax(1)) == right).mean()
    assert lines["together", 3]["quality"]["accuracy"] == pytest.approx(together)
    assert lines["together", 3]["models"] == 3 and lines["mean", 3]["models"] == 1

    states = [load_file(export / "model.safetensors") for export in exports]
    mean = AutoModelForSequenceClassification.from_pretrained(exports[0])
    mean.load_state_dict({name: sum(state[name] for state in states) / 3 for name in states[0]})
    mean.save_pretrained(place / "by-hand")
    AutoTokenizer.from_pretrained(exports[0]).save_pretrained(place / "by-hand")
    by_hand = said(told(place, [place / "by-hand"], held)[0].argmax(1)) == right
    assert lines["mean", 3]["quality"]["accuracy"] == pytest.approx(by_hand.mean())

    single = [line for line in report["lines"] if line["models"] == 1]
    assert report["kept"]["quality"]["accuracy"] == max(line["quality"]["accuracy"] for line in single)
    assert report["test"] is not None and json.loads((destination / "combination.json").read_text()) == report


def test_what_is_kept_answers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = place / "kept"
    assert tutti_command(["combine", *map(str, runs(place)[1:]), "--to", str(destination)]) == 0
    said = capsys.readouterr().out
    assert "← kept" in said and "final test" in said and f"tutti predict {destination}" in said
    report = json.loads((destination / "combination.json").read_text())
    # What lies there is what was measured, and opens in plain transformers.
    prepared = api.prepare(load_config(runs(place)[0] / "config.yaml"))
    held = prepared.parts["validation"].read()  # type: ignore[union-attr]
    with (place / "held.tsv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerows([("text", "label"), *((one["text"], one["labels"][0]) for one in held)])
    found = api.evaluate(destination, file=place / "held.tsv")
    assert found["accuracy"] == pytest.approx(report["kept"]["quality"]["accuracy"])
    (first, *_) = told(place, [destination], held)
    names = AutoModelForSequenceClassification.from_pretrained(destination).config.id2label
    plain = np.mean([names[n] == one["labels"][0] for n, one in zip(first.argmax(1), held, strict=True)])
    assert plain == pytest.approx(found["accuracy"])


def test_what_cannot_be_combined(place: Path, tmp_path: Path) -> None:
    first, second, _ = runs(place)
    for some in ([first], [first, first]):
        with pytest.raises(RunError, match="two runs or more"):
            api.combine(some, destination=tmp_path / "x", console=False)
    train(place, "other-data", "data.validation=0.3", "train.steps=10")
    with pytest.raises(RunError, match="learned from other examples"):
        api.combine([first, place / "runs" / "other-data"], destination=tmp_path / "x", console=False)
    with pytest.raises(RunError, match="exists and is no model that"):
        api.combine([first, second], destination=first, console=False)
    assert not (tmp_path / "x").exists() and (first / "config.yaml").is_file()


def test_models_that_began_elsewhere_have_no_mean(place: Path, tmp_path: Path) -> None:
    config = "{model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
    train(place, "small", f"model={{config: {config}}}", f"data.tokenizer={place / 'bert'}", "train.steps=20")
    report = api.combine(
        [runs(place)[2], place / "runs" / "small"], destination=tmp_path / "x", console=False
    )
    assert [line["way"] for line in report["lines"]] == ["alone", "alone", "together"]
    assert report["kept"]["way"] == "alone"
