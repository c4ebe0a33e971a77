"""Labelled examples, from a file to an exported model, on one worker and on several."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

import tutti
from encoders import write_encoder, write_intents, write_names
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import Config, load_config
from tutti.core import CheckpointError, read_events
from tutti.core.errors import RunError
from tutti.train.labelled import whole_examples


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("labelled")
    write_encoder(place / "bert")
    write_intents(place)
    write_names(place)
    return place


def config_of(place: Path, name: str, *words: str, kind: str = "classify") -> Config:
    source = place / ("intents.tsv" if kind == "classify" else "names.conll")
    return load_config(
        None,
        [
            *(f"name={name}", f"runs={place / 'runs'}", f"task={kind}", f"data.source={source}"),
            *(
                f"model={place / 'bert'}",
                f"data.cache={place / 'cache'}",
                "data.sequence=32",
                "data.validation=0.25",
            ),
            *(
                "train.precision=fp32",
                "train.learning_rate=3e-3",
                "train.steps=150",
                "train.batch=16",
                "sync.shares=even",
            ),
            *words,
        ],
    )


def train(place: Path, name: str, *words: str, kind: str = "classify", **options: Any) -> dict[str, Any]:
    return api.train(config_of(place, name, *words, kind=kind), console=False, **options)


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    return train(place, "alone", "replicas=1", "data.test=0.15", "model.dropout=0.0")


def test_it_learns_and_says_how_well(place: Path, alone: dict[str, Any]) -> None:
    assert alone["state"] == "finished" and alone["best"]["metrics"]["accuracy"] >= 0.8
    assert set(alone["test"]["metrics"]) == {"accuracy", "macro_f1", "mcc"}
    assert alone["test"]["step"] == alone["best"]["step"]
    (tested,) = read_events(place / "runs" / "alone", "test")
    assert tested["metrics"] == alone["test"]["metrics"]
    page = (place / "runs" / "alone" / "report.md").read_text()
    assert "accuracy" in page and "tutti predict" in page and "3 labels" in page


def test_evaluate_and_predict_agree_with_plain_transformers(place: Path, alone: dict[str, Any]) -> None:
    run = place / "runs" / "alone"
    assert api.evaluate(run)["accuracy"] == alone["best"]["metrics"]["accuracy"]
    assert api.evaluate(run, split="test")["accuracy"] == alone["test"]["metrics"]["accuracy"]
    texts = ["my card is lost", "exchange", "why is my transfer so late please"]
    said = api.predict(run, texts)
    theirs = pipeline("text-classification", model=str(run / "export"))(texts)
    assert [one["label"] for one in said] == [one["label"] for one in theirs]
    for one, other in zip(said, theirs, strict=True):
        assert one["scores"][one["label"]] == pytest.approx(other["score"], abs=1e-3)


def test_two_workers_learn_the_same_as_one(place: Path, alone: dict[str, Any]) -> None:
    train(place, "two", "replicas=2", "data.test=0.15", "model.dropout=0.0")
    one, two = (
        {e["step"]: e for e in read_events(place / "runs" / name, "validation")} for name in ("alone", "two")
    )
    assert one.keys() == two.keys()
    # Later, few examples learned by heart make much of rounding: other micro-batches of one worker do the same.
    for step in sorted(one)[:5]:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_model_that_is_split_learns_the_same_as_a_whole_one(place: Path, alone: dict[str, Any]) -> None:
    report = train(place, "split", "replicas=1", "layout.tensor=2", "data.test=0.15", "model.dropout=0.0")
    assert report["state"] == "finished" and report["world_size"] == 2
    one, split = (
        {e["step"]: e for e in read_events(place / "runs" / name, "validation")}
        for name in ("alone", "split")
    )
    assert one.keys() == split.keys()
    for step in sorted(one)[:5]:
        assert split[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-4)
        assert split[step]["targets"] == one[step]["targets"]
        assert split[step]["metrics"] == pytest.approx(one[step]["metrics"], abs=0.05)
    # What is handed on is a whole model, and goes on in any layout.
    whole = AutoModelForSequenceClassification.from_pretrained(place / "runs" / "split" / "export")
    assert whole.num_parameters() == report["parameters"]
    assert report["test"]["metrics"]["accuracy"] >= 0.7
    assert api.evaluate(place / "runs" / "split")["accuracy"] == report["best"]["metrics"]["accuracy"]
    more = ("data.test=0.15", "model.dropout=0.0", "train.steps=160")
    again = train(place, "split", "replicas=2", "layout=1", *more, resume=True)
    assert again["state"] == "finished" and again["steps"] == 160


@pytest.mark.slow
@pytest.mark.parametrize(
    "sync",
    [
        ("sync=allreduce",),
        ("sync=allreduce", "sync.codec=int8"),
        ("sync=local_sgd", "sync.every=5"),
        ("sync=diloco", "sync.every=5"),
        ("sync=gossip",),
        ("sync=server",),
    ],
    ids=" ".join,
)
def test_replicas_of_models_that_are_split_agree_by_every_policy(place: Path, sync: tuple[str, ...]) -> None:
    name = "split-" + "-".join(word.split("=")[1] for word in sync)
    report = train(
        place, name, "replicas=2", "layout.tensor=2", *sync, "train.steps=120", "evaluate.every=60"
    )
    assert report["state"] == "finished" and report["world_size"] == 4
    validations = list(read_events(place / "runs" / name, "validation"))
    assert min(event["loss"] for event in validations) < 0.95  # 1.1 is what knowing nothing comes to
    assert api.evaluate(place / "runs" / name)["accuracy"] == report["best"]["metrics"]["accuracy"]


def test_tags_on_a_sharded_model_and_patience(place: Path) -> None:
    report = train(
        place,
        "tags",
        "replicas=1",
        "layout=2",
        "evaluate.every=20",
        "train.patience=2",
        "train.steps=2000",
        kind="tag",
    )
    assert report["state"] == "finished" and report["best"]["metrics"]["f1"] >= 0.9
    assert report["steps"] < 2000
    (enough,) = read_events(place / "runs" / "tags", "enough")
    assert enough["best_step"] == report["best"]["step"] == report["steps"] - 41
    (found,) = api.predict(place / "runs" / "tags", ["Anna works for Acme Corp in New York 7"])
    assert {(e["text"], e["label"]) for e in found["entities"]} >= {("Anna", "PER"), ("New York", "LOC")}
    theirs = pipeline("token-classification", model=str(place / "runs" / "tags" / "export"))
    assert "B-PER" in {one["entity"] for one in theirs("Anna works for Acme Corp in New York 7")}


@pytest.mark.slow
def test_replicas_that_drift_end_early_together(place: Path) -> None:
    report = train(
        place, "drift", "replicas=2", "sync=diloco", "sync.every=5", "evaluate.every=20", "train.patience=6",
        "train.steps=2000",
    )  # fmt: skip
    assert (
        report["state"] == "finished"
        and report["steps"] < 2000
        and report["best"]["metrics"]["accuracy"] >= 0.8
    )


@pytest.mark.slow
def test_a_run_goes_on_with_its_examples_and_no_others(place: Path, alone: dict[str, Any]) -> None:
    words = ("replicas=1", "data.test=0.15", "model.dropout=0.0")
    report = train(place, "alone", *words, "train.steps=160", resume=True)
    assert report["steps"] == 160
    other = write_intents(place / "bert", 90)
    with pytest.raises(CheckpointError, match="has changed since it was trained"):
        train(place, "alone", *words, f"data.source={other}", "train.steps=170", resume=True)


def test_predict_by_command(
    place: Path,
    alone: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = str(place / "runs" / "alone")
    assert tutti_command(["predict", run, "my card is lost", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["predictions"]
    assert said["label"] == "lost_card"
    assert tutti_command(["predict", run, "my card is lost"]) == 0
    assert "lost_card" in capsys.readouterr().out
    assert tutti_command(["predict", run, "--file", str(place / "intents.tsv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 120 and all("label" in json.loads(line) for line in lines)
    for said, code, words in (
        ('{"text": "exchange"}\n', 0, "exchange"),
        ('{"text"\n', 2, "standard input:1 is no JSON"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert tutti_command(["predict", run, "--file", "-"]) == code
        captured = capsys.readouterr()
        assert words in captured.out + captured.err
    (place / "latin.jsonl").write_bytes('{"text": "où est ma carte"}\n'.encode("latin-1"))
    for verb in ("predict", "evaluate", "label", "explain"):
        assert tutti_command([verb, run, "--file", str(place / "latin.jsonl")]) == 2
        assert "latin.jsonl:1 does not decode" in capsys.readouterr().err
    assert tutti_command(["predict", run]) == 2
    assert "nothing to judge" in capsys.readouterr().err
    assert tutti_command(["generate", run, "x"]) == 2
    assert "learned to classify, not to go on from a text" in capsys.readouterr().err


def test_explain_by_command_names_the_word_that_gives_the_label_away(
    place: Path, alone: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, page = str(place / "runs" / "alone"), tmp_path / "why.html"
    text = "why is my transfer so late please"
    for method in ("gradients", "ablation"):
        assert tutti_command(["explain", run, text, "--method", method, "--json", "--html", str(page)]) == 0
        ((said,),) = json.loads(capsys.readouterr().out)["explanations"]
        assert (said["label"], said["method"]) == ("late_transfer", method)
        assert max(said["words"], key=lambda word: word["attribution"])["text"] == "late"
        assert "late</mark>" in page.read_text()
    assert tutti_command(["explain", run, text, "exchange"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == text and lines[1].split()[0] == "late_transfer" and lines[2].split()[1] == "late"
    assert tutti_command(["explain", run, text, "--label", "nonsense"]) == 2
    assert "knows no label 'nonsense'" in capsys.readouterr().err
    assert tutti_command(["explain", run, text, "--method", "guess"]) == 2
    assert "guess" in capsys.readouterr().err
    assert tutti_command(["explain", run, text, "--html", str(tmp_path / "no" / "why.html")]) == 2
    assert "there is no directory" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_written(place: Path) -> None:
    for words, error, said in (
        (("model.path=" + str(place),), tutti.TuttiError, "no config.json"),
        (("data.sequence=100",), tutti.TuttiError, "sees 64 tokens at once"),
        (("data.tokenizer=characters",), tutti.TuttiError, "trained with another tokenizer"),
        (("layout.pipeline=2", "replicas=1"), tutti.TuttiError, "activations have one size"),
        (("layout.tensor=2", "replicas=1", "tune.quantize=int8"), tutti.TuttiError, "whole matrices"),
        (("train.epochs=2",), tutti.TuttiError, "steps and epochs"),
    ):
        with pytest.raises(error, match=said):
            train(place, "never", *words)
        assert not (place / "runs" / "never").exists()
    with pytest.raises(RunError, match="learned from no labelled examples"):
        api.predict(_language_run(place), ["x"])


def _language_run(place: Path) -> Path:
    text = place / "text.txt"
    text.write_text("the card is lost. " * 400)
    words = [
        f"data.source={text}",
        "data.tokenizer=characters",
        "model=50K",
        "train.steps=1",
        "data.sequence=16",
    ]
    api.train(
        load_config(
            None,
            [
                *words,
                "name=language",
                f"runs={place / 'runs'}",
                f"data.cache={place / 'cache'}",
                "replicas=1",
                "train.precision=fp32",
            ],
        ),
        console=False,
    )
    return place / "runs" / "language"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "last"])
def test_a_part_of_the_model_learns(place: Path, method: str) -> None:
    report = train(
        place,
        method,
        "replicas=1",
        f"tune={{method: {method}{', layers: 1' if method == 'last' else ''}}}",
        "train.learning_rate=1e-2",
        "train.steps=200",
    )
    assert report["best"]["metrics"]["accuracy"] >= 0.8
    exported = AutoModelForSequenceClassification.from_pretrained(place / "runs" / method / "export")
    before = AutoModel.from_pretrained(place / "bert")
    same = {
        name: torch.equal(parameter, exported.get_parameter(f"bert.{name}"))
        for name, parameter in before.named_parameters()
    }
    assert same["embeddings.word_embeddings.weight"] and same["encoder.layer.0.output.LayerNorm.weight"]
    assert same["encoder.layer.0.attention.self.query.weight"] == (method == "last")
    assert not same["encoder.layer.1.attention.self.query.weight"]
    texts = ["my card is lost", "exchange", "why is my transfer so late please"]
    said = [one["label"] for one in api.predict(place / "runs" / method, texts)]
    assert [
        one["label"]
        for one in pipeline("text-classification", model=str(place / "runs" / method / "export"))(texts)
    ] == said
    if method == "lora":
        adapters = place / "runs" / method / "export" / "adapters"
        assert sum(file.stat().st_size for file in adapters.iterdir()) < 60_000
        plain = AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=3)
        adapted = PeftModel.from_pretrained(plain, adapters).eval()
        ids = torch.tensor([[2, 7, 9, 3]])
        torch.testing.assert_close(adapted(ids).logits, exported.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_of_some_rows_those_examples_count_that_are_there_whole() -> None:
    """Example 0 has rows 0 and 1, example 1 row 2, example 2 rows 3 to 5; rows 0, 1, 3, 4 and 5 were asked about."""
    example = np.array([0, 0, 1, 2, 2, 2])
    assert whole_examples(example, np.array([0, 1, 3, 4, 5])).tolist() == [0, 2]
    assert whole_examples(example, np.array([0, 2, 4])).tolist() == [1]
