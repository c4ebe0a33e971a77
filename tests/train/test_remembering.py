"""A trained model learns something else and keeps what it knew: former examples among the new ones, and EWC."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from encoders import WORDS, write_encoder, write_intents
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import Config, load_config
from tutti.core import DataError, ModelError, read_events
from tutti.core.errors import ConfigError
from tutti.data.labelled import FORMER, ExampleSource, open_examples
from tutti.train.labelled import labelled_job
from tutti.train.remembering import Hold


def write_others(path: Path, signs: dict[str, str], count: int = 90) -> Path:
    """Texts with the same labels, which other words give away; the former words say nothing in them."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["text", "label"])
        for number in range(count):
            label = sorted(signs)[number % len(signs)]
            words = [*random.choice(WORDS[:30], 4), str(random.choice(["lost", "exchange", "late"]))]
            rows.writerow([f"{' '.join(words)} {signs[label]} {number}", label])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`knows`: a run that learned the intents; `others.tsv`: what it is to learn now."""
    place = tmp_path_factory.mktemp("remembering")
    write_encoder(place / "bert")
    write_intents(place)
    write_others(place / "others.tsv", {"lost_card": "flight", "exchange": "paris", "late_transfer": "anna"})
    config = config_of(place, "knows", place / "bert", f"data.source={place / 'intents.tsv'}")
    api.train(config, console=False)
    return place


def config_of(place: Path, name: str, model: Path, *words: str) -> Config:
    return load_config(
        None,
        [
            *(f"model={model}", "model.dropout=0.0"),
            *(f"name={name}", f"runs={place / 'runs'}", "task=classify", f"data.cache={place / 'cache'}"),
            *(f"data.source={place / 'others.tsv'}", "data.sequence=32", "data.validation=0.25"),
            *("train.precision=fp32", "train.learning_rate=3e-3", "train.steps=120", "train.batch=16"),
            *("replicas=1", "sync.shares=even", *words),
        ],
    )


def learn(place: Path, name: str, *words: str) -> dict[str, Any]:
    return api.train(config_of(place, name, place / "runs" / "knows" / "export", *words), console=False)


def known_still(place: Path, name: str) -> float:
    return float(api.evaluate(place / "runs" / name, file=place / "intents.tsv")["accuracy"])


@pytest.fixture(scope="module")
def forgetful(place: Path) -> float:
    learn(place, "forgets")
    return known_still(place, "forgets")


def test_former_examples_among_the_new_ones_keep_what_was_known(place: Path, forgetful: float) -> None:
    assert known_still(place, "knows") >= 0.9 and forgetful < 0.8
    report = learn(place, "replays", f"remember={place / 'intents.tsv'}", "remember.replay=0.4")
    assert known_still(place, "replays") >= forgetful + 0.15
    assert report["best"]["metrics"]["accuracy"] >= 0.8
    config = load_config(place / "runs" / "replays" / "config.yaml")
    prepared = api.prepare(config)
    train = prepared.parts["train"].read()  # type: ignore[union-attr]
    former = [one for one in train if "lost_card" in one["labels"] and "flight" not in one["text"].split()]
    new = {line["text"] for line in csv.DictReader((place / "others.tsv").open(), delimiter="\t")}
    replayed = [one for one in train if one["text"] not in new]
    assert former and len(replayed) == round((len(train) - len(replayed)) * 0.4 / 0.6)


def test_weights_that_matter_are_held(place: Path, forgetful: float) -> None:
    words = (f"remember.source={place / 'intents.tsv'}", "remember.replay=0.0", "remember.ewc=1000.0")
    learn(place, "holds", *words)
    assert known_still(place, "holds") >= forgetful + 0.15


def test_the_gradient_is_that_of_the_formula(place: Path) -> None:
    """λ/2 Σ F (θ − θ*)², F from plain transformers' gradients of one example after another."""
    weight = 3.0
    words = (f"remember.source={place / 'intents.tsv'}", f"remember.ewc={weight}", "remember.replay=0.0")
    directory = place / "runs" / "knows" / "export"
    config = config_of(place, "x", directory, *words)
    prepared = api.prepare(config)
    job = labelled_job(config, prepared.directory, learns=True)
    assert job.known is not None

    plain = AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    labels = open_examples(prepared.directory).labels.numbers
    fisher = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    former = open_examples(prepared.directory).parts[FORMER].read()
    assert len(former) == 120
    for example in former:
        plain.zero_grad()
        logits = plain(**tokenizer(example["text"], return_tensors="pt")).logits
        cross_entropy(logits, torch.tensor([labels[example["labels"][0]]])).backward()
        for name, parameter in plain.named_parameters():
            fisher[name] += parameter.grad.square() / len(former)
    for name, expected in fisher.items():
        torch.testing.assert_close(job.known.importance[f"model.{name}"], expected, rtol=1e-3, atol=1e-7)

    start = {name: p.detach().clone() for name, p in plain.named_parameters()}
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            dict(job.objective.model.named_parameters())[name].copy_(parameter)
    pull = sum((fisher[name] * (p - start[name]).square()).sum() for name, p in plain.named_parameters())
    plain.zero_grad()
    (weight / 2 * pull).backward()
    for parameter in job.objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    Hold(job.objective, job.known, weight).add_gradients(2.0)
    for name, parameter in plain.named_parameters():
        found = dict(job.objective.model.named_parameters())[name].grad
        torch.testing.assert_close(found, 1 + 2.0 * parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_workers_and_shards_hold_alike(place: Path) -> None:
    words = (f"remember.source={place / 'intents.tsv'}", "remember.ewc=100.0", "train.steps=6")
    losses = {}
    for name, more in {"one": (), "two": ("replicas=2",), "sharded": ("layout=2",)}.items():
        learn(place, f"alike-{name}", *words, "evaluate.every=2", *more)
        losses[name] = [e["loss"] for e in read_events(place / "runs" / f"alike-{name}", "validation")]
    assert len(losses["one"]) == 3
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["sharded"] == pytest.approx(losses["one"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("remember.ewc=1.0",), "remember.source"),
        (("remember={source}", "remember.replay=0.95"), "less than a tenth"),
        (("remember={source}", "remember.ewc=1.0", "tune=lora"), "not those of lora"),
        (("remember={source}", "remember.ewc=1.0", "sync=server"), "where the optimizer is elsewhere"),
        (("remember={source}", "remember.replay=0.0"), "of no use"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    place: Path, words: tuple[str, ...], said: str
) -> None:
    filled = [word.format(source=place / "intents.tsv") for word in words]
    with pytest.raises(ConfigError, match=said):
        config_of(place, "refused", place / "bert", *filled)


def test_nothing_to_remember_by(place: Path) -> None:
    words = (f"remember.source={place / 'others.tsv'}",)
    with pytest.raises(DataError, match="not among those to learn"):
        api.train(config_of(place, "refused", place / "bert", *words), console=False)
    words = (f"remember.source={place / 'intents.tsv'}", "remember.ewc=1.0")
    with pytest.raises((ConfigError, ModelError), match="has no head for these labels"):
        api.train(config_of(place, "refused", place / "bert", *words), console=False)
    assert not (place / "runs" / "refused").exists()


def test_evaluate_on_a_file(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against plain transformers, and by command; labels that the model does not know are refused."""
    directory = place / "runs" / "knows" / "export"
    plain, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    lines = list(csv.DictReader((place / "others.tsv").open(), delimiter="\t"))
    with torch.no_grad():
        said = [
            plain(**tokenizer(line["text"], return_tensors="pt")).logits.argmax().item() for line in lines
        ]
    right = [plain.config.id2label[n] == line["label"] for n, line in zip(said, lines, strict=True)]
    found = api.evaluate(place / "runs" / "knows", file=place / "others.tsv")
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert (
        tutti_command(["evaluate", str(place / "runs" / "knows"), "--file", str(place / "others.tsv")]) == 0
    )
    assert "accuracy" in capsys.readouterr().out
    (tmp_path / "odd.tsv").write_text("text\tlabel\nwho is it\tnobody\n")
    with pytest.raises(DataError, match=r"odd.tsv:2 has the label 'nobody'"):
        api.evaluate(place / "runs" / "knows", file=tmp_path / "odd.tsv")


def test_former_rows_are_a_part_like_others(place: Path) -> None:
    words = (f"remember.source={place / 'intents.tsv'}", "remember.ewc=1.0")
    config = config_of(place, "x", place / "runs" / "knows" / "export", *words)
    prepared = open_examples(api.prepare(config).directory)
    job = labelled_job(config, prepared.directory)
    assert job.known is None  # nobody is about to learn
    assert ExampleSource(prepared, FORMER, job.task).samples_in_epoch(0) == 120
