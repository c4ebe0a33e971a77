"""Few examples, from a file to an exported model: by contrast, and with labels that a first model guessed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from encoders import write_encoder, write_intents, write_jsonl
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import load_config
from tutti.config.problems import ConfigError
from tutti.core import DataError, TuttiError, read_events
from tutti.core.errors import RunError
from tutti.data.labelled import open_examples


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`few.tsv`: 13 examples of each intent; `aside.tsv`: 27 others; `new.jsonl`: texts without labels."""
    place = tmp_path_factory.mktemp("few")
    write_encoder(place / "bert")
    with write_intents(place).open(newline="") as file:
        head, *rows = csv.reader(file, delimiter="\t")
    for name, some in (("few", rows[:39]), ("aside", rows[39:66])):
        with (place / f"{name}.tsv").open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([head, *some])
    write_jsonl(place / "new.jsonl", [{"text": text} for text, _ in rows[30:120]])
    return place


def words_of(place: Path, name: str, *more: str) -> list[str]:
    return [
        *(f"name={name}", f"runs={place / 'runs'}", f"data.cache={place / 'cache'}"),
        *(f"model={place / 'bert'}", "task={kind: classify, contrast: true, together: 8}"),
        *(f"data.source={place / 'few.tsv'}", f"data.validation_source={place / 'aside.tsv'}"),
        *("data.sequence=32", "model.dropout=0.0", "train.precision=fp32", "train.learning_rate=3e-3"),
        *("sync.shares=even", "train.batch=4", *more),
    ]


def train(place: Path, name: str, *more: str, **options: Any) -> dict[str, Any]:
    return api.train(load_config(None, words_of(place, name, *more)), console=False, **options)


@pytest.fixture(scope="module")
def learned(place: Path) -> dict[str, Any]:
    return train(place, "learned", "replicas=2", "train.steps=60", "evaluate.every=15")


def test_the_head_is_scikit_learns_on_plain_transformers_vectors(
    place: Path, learned: dict[str, Any]
) -> None:
    """It is fitted on training texts alone, and the run, its export and `predict` say the same of the others."""
    export = place / "runs" / "learned" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    parts = open_examples(next((place / "cache" / "examples").iterdir())).parts
    vectors, labels, logits = {}, {}, {}
    for part in ("train", "validation"):
        examples = parts[part].read()
        with torch.no_grad():
            given = tokenizer([e["text"] for e in examples], padding=True, return_tensors="pt")
            vectors[part] = model.bert(**given).pooler_output.double().numpy()
            logits[part] = model(**given).logits.double()
        labels[part] = [e["labels"][0] for e in examples]
    assert len(labels["train"]) == 39 and len(labels["validation"]) == 27
    apart = np.sqrt(((vectors["train"] - vectors["train"].mean(0)) ** 2).sum(1).mean())
    head = LogisticRegression(C=100, tol=1e-10, max_iter=100_000).fit(
        vectors["train"] / apart, labels["train"]
    )
    theirs = head.predict_proba(vectors["validation"] / apart)
    np.testing.assert_allclose(logits["validation"].softmax(1).numpy(), theirs, atol=1e-3)
    right = float((head.predict(vectors["validation"] / apart) == np.array(labels["validation"])).mean())
    assert right == learned["best"]["metrics"]["accuracy"] >= 0.8
    assert api.evaluate(place / "runs" / "learned")["accuracy"] == right
    texts = [example["text"] for example in parts["validation"].read()[:5]]
    said = api.predict(place / "runs" / "learned", texts)
    for one, other in zip(said, pipeline("text-classification", model=str(export))(texts), strict=True):
        assert one["label"] == other["label"]
        assert one["scores"][one["label"]] == pytest.approx(other["score"], abs=1e-3)
    assert any("classifier, reads" in choice for choice in learned["choices"])


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(place: Path) -> None:
    """Nor does a layout that shards, nor small micro-batches: groups are samples, and every rank fits the same head."""
    found = []
    for name, more in {
        "one": ["replicas=1"],
        "two": ["replicas=2", "sync.membership=fixed", "train.micro_batch=1"],
        "sharded": ["replicas=1", "layout=2"],
    }.items():
        train(place, name, "train.steps=6", "evaluate.every=3", *more)
        found.append(list(read_events(place / "runs" / name, "validation")))
    assert [len(events) for events in found] == [2] * 3
    for events in found[1:]:
        for event, first in zip(events, found[0], strict=True):
            assert event["loss"] == pytest.approx(first["loss"], rel=1e-4)
            assert event["metrics"] == pytest.approx(first["metrics"], abs=1e-6)


def test_a_run_goes_on_with_any_policy_and_is_tested_by_its_own_head(place: Path) -> None:
    words = (
        "sync=diloco",
        "sync.every=5",
        f"data.test_source={place / 'intents.tsv'}",
        "data.deduplicate=false",
    )
    train(place, "again", "replicas=2", "train.steps=10", *words)
    report = train(place, "again", "replicas=1", "train.steps=20", *words, resume=True)
    assert report["steps"] == 20
    tested = api.evaluate(place / "runs" / "again", split="test")
    assert tested["accuracy"] == report["test"]["metrics"]["accuracy"]
    assert tested["loss"] == pytest.approx(report["test"]["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_smaller_one_learns_on_as_a_classifier(place: Path, learned: dict[str, Any]) -> None:
    found = api.compress(
        place / "runs" / "learned",
        target="<50% worse",
        recipes=["channels:0.5"],
        destination=place / "small",
        recovery_steps=20,
        console=False,
    )
    assert found["kept"] == "channels:0.5"
    (said,) = api.predict(place / "small", ["my card is lost"])
    assert said["label"] == "lost_card"


def test_guessed_labels_are_learned_from_and_never_judged_by(
    place: Path, learned: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`new.jsonl` has 9 of the training texts, all 27 to be judged by, and 54 others."""
    run, new = str(place / "runs" / "learned"), str(place / "new.jsonl")
    assert tutti_command(["label", run, "--file", new, "--above", "0.8"]) == 0
    out, told = capsys.readouterr()
    guessed = [json.loads(line) for line in out.splitlines()]
    assert 10 <= len(guessed) <= 54 and all(set(one) == {"text", "label", "score"} for one in guessed)
    assert all(0.8 < one["score"] <= 1 for one in guessed)
    assert guessed == sorted(guessed, key=lambda one: -one["score"])
    for one, again in zip(
        guessed, api.predict(place / "runs" / "learned", [g["text"] for g in guessed]), strict=True
    ):
        assert one["label"] == again["label"] and one["score"] == pytest.approx(
            again["scores"][one["label"]], abs=2e-4
        )
    known = {text for part in ("few", "aside") for text, _ in _rows(place / f"{part}.tsv")}
    assert not known & {one["text"] for one in guessed}
    assert f"{len(guessed)} of 90 texts have a label with a chance above 0.8" in told
    assert "36 are known to the run" in told
    assert tutti_command(["label", run, "--file", new, "--above", "0.8", "--most", "3", "--json"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert max(few["labels"].values()) == 3 and sum(few["labels"].values()) == len(few["examples"])
    assert len(few["examples"]) + few["unsure"] + few["known"] + few["surplus"] == 90
    assert few["empty"] == 0
    checked, aside = few["checked"], _rows(place / "aside.tsv")
    said = [
        (one["label"], one["scores"][one["label"]])
        for one in api.predict(place / "runs" / "learned", [t for t, _ in aside])
    ]
    sure = [name == label for (name, score), (_, label) in zip(said, aside, strict=True) if score > 0.8]
    assert checked == {"of": 27, "sure": len(sure), "right": sum(sure)} and len(sure) > 5
    assert (
        f"of 27 validation examples the model is as sure about {len(sure)}, and right about {sum(sure)}"
        in told
    )
    # Whatever the file says of texts to be judged by, they are not trained on; nor is anything guessed kept aside.
    extra = [*guessed, *({"text": text, "label": "exchange"} for text in sorted(known)), guessed[0]]
    write_jsonl(place / "more.jsonl", extra)
    for name, words in (("given", ()), ("split", ("data.validation_source=null", "data.validation=0.3"))):
        config = load_config(None, words_of(place, name, f"data.extra_source={place / 'more.jsonl'}", *words))
        prepared = api.prepare(config)
        texts = {part: {e["text"] for e in found.read()} for part, found in prepared.parts.items()}
        assert not texts["train"] & texts["validation"]
        assert not {one["text"] for one in guessed} & texts["validation"]
        assert texts["train"] >= {one["text"] for one in guessed}
        mine = dict(_rows(place / "few.tsv"))
        of_train = {e["text"]: e["labels"][0] for e in prepared.parts["train"].read()}
        assert all(of_train[text] == label for text, label in mine.items() if text in of_train)
    assert prepared.counts["extra"] == len(guessed) + (27 if words else 0)
    report = train(
        place, "second", f"data.extra_source={place / 'more.jsonl'}", "train.steps=2", "replicas=1"
    )
    assert any(
        "examples of data.extra_source are trained on as well" in choice for choice in report["choices"]
    )


def test_empty_texts_are_left_without_labels_and_counted(
    place: Path, learned: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is only asked about them is refused, by the place of the first."""
    run, some = str(place / "runs" / "learned"), place / "some.jsonl"
    new = [json.loads(line) for line in (place / "new.jsonl").read_text().splitlines()[-2:]]
    write_jsonl(some, [new[0], {"text": ""}, {"text": " \n"}, new[1]])
    assert tutti_command(["label", run, "--file", str(some), "--above", "0"]) == 0
    out, told = capsys.readouterr()
    assert sorted(json.loads(line)["text"] for line in out.splitlines()) == sorted(n["text"] for n in new)
    assert "2 of 4 texts have a label" in told and "2 are empty" in told
    assert api.label(place / "runs" / "learned", ["", new[0]["text"]], above=0)["empty"] == 1
    assert tutti_command(["predict", run, "--file", str(some)]) == 2
    told = capsys.readouterr().err
    assert f"{some}:2: 'text' is empty" in told and "data.on_empty" not in told


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def test_what_cannot_be_is_refused(
    place: Path,
    learned: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = str(place / "runs" / "learned")
    (place / "single.tsv").write_text((place / "few.tsv").read_text() + "something else\tother\n")
    for words, error, said in (
        (("evaluate.samples=3",), ConfigError, "takes all training examples"),
        ((f"data.source={place / 'single.tsv'}",), DataError, "'other' has one training example"),
        (
            ("task.together=64", "train.batch=1", "replicas=2"),
            ConfigError,
            "fewer samples than the 2 workers",
        ),
        (("task={kind: language_model}", f"data.extra_source={run}"), ConfigError, "for labelled examples"),
        (("data.extra_source=nowhere.jsonl",), TuttiError, "nowhere.jsonl"),
        ((f"data.extra_source={place / 'new.jsonl'}",), DataError, "new.jsonl:1 has no field 'label'"),
    ):
        with pytest.raises(error, match=said):
            train(place, "never", *words)
        assert not (place / "runs" / "never").exists()
    write_jsonl(place / "other.jsonl", [{"text": "exchange"}, {"body": "exchange"}])
    assert tutti_command(["label", run, "--file", str(place / "other.jsonl")]) == 2
    assert f"{place / 'other.jsonl'}:2 has no field 'text' (it has body)" in capsys.readouterr().err
    assert tutti_command(["label", run, "--file", str(place / "new.jsonl"), "--above", "90"]) == 2
    assert "a chance from 0 to below 1" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert tutti_command(["label", run, "--file", "-"]) == 0
    assert capsys.readouterr().out == ""
    several = ["task={kind: classify, multiple: true}", "train.steps=1", "train.batch=8", "replicas=1"]
    train(place, "several", *several)
    with pytest.raises(RunError, match="gives no text one label"):
        api.label(place / "runs" / "several", ["exchange"])
