"""Masked language models from text to a checkpoint that others open: alone, on two workers, resumed, further
pretrained, and fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from encoders import WORDS, write_encoder, write_intents
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import Config, load_config
from tutti.core import ConfigError, DataError, ModelError, RunError, read_events
from tutti.train.masked import masked_source

#: Sentences in which the hidden word follows from the others.
PAIRS = [("lost", "card"), ("late", "transfer"), ("wrong", "price"), ("stolen", "money"), ("open", "account")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("masked")
    lines = []
    for number in range(900):
        how, what = PAIRS[number % len(PAIRS)]
        around = WORDS[number // 5 % 20], WORDS[20 + number // 100]
        lines.append(json.dumps({"text": f"{around[0]} {what} is {how} {around[1]}"}))
    (place / "text.jsonl").write_text("\n".join(lines))
    write_encoder(place / "bert")
    write_intents(place)
    return place


def config_of(place: Path, name: str, *words: str) -> Config:
    return load_config(
        None,
        [
            *(f"name={name}", f"runs={place / 'runs'}", f"data.source={place / 'text.jsonl'}"),
            *(f"data.cache={place / 'cache'}", "data.sequence=24", "data.validation=0.1"),
            *("task=masked_language_model", "train.precision=fp32", "train.batch=16", "sync.shares=even"),
            *words,
        ],
    )


def train(place: Path, name: str, *words: str, **options: Any) -> dict[str, Any]:
    return api.train(config_of(place, name, *words), console=False, **options)


#: From a trained encoder that has never guessed.
FURTHER = ("train.learning_rate=1e-3", "train.schedule=constant", "train.warmup=2", "model.dropout=0.0")


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    prompts = json.dumps(["my [MASK] is lost", "the price is <mask>"])
    words = ("model=200K", f"data.tokenizer={place / 'bert'}", "train.steps=200", "train.learning_rate=3e-3")
    return train(place, "alone", *words, f"evaluate.prompts={prompts}", "replicas=1")


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    train(place, "whole", f"model={place / 'bert'}", *FURTHER, "replicas=1", "train.steps=12")
    return place / "runs" / "whole"


def test_it_learns_what_follows_from_the_rest(place: Path, alone: dict[str, Any]) -> None:
    events = list(read_events(place / "runs" / "alone", "validation"))
    found = [event["metrics"]["accuracy"] for event in events]
    assert alone["state"] == "finished" and found[-1] > 0.35 > found[0]
    assert all(
        event.get("bits_per_byte") is None for event in events
    )  # a guess of hidden words is no code for a text
    page = (place / "runs" / "alone" / "report.md").read_text()
    assert "tutti predict" in page and "[MASK]" in page
    written = read_events(place / "runs" / "alone", "sample_text")
    assert {event["prompt"] for event in written} == {
        "my [MASK] is lost → ",
        "the price is <mask> → ",
    }


def test_predict_is_fill_mask_of_transformers(place: Path, alone: dict[str, Any]) -> None:
    run = place / "runs" / "alone"
    text = "my [MASK] is lost where your [MASK] is late"
    (said,) = api.predict(run, [text])
    theirs = pipeline("fill-mask", model=str(run / "export"))(text)
    for ours, other in zip(said["masks"], theirs, strict=True):
        assert [one["token"] for one in ours] == [one["token_str"] for one in other]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in other], abs=1e-3)
    assert "card" in {one["token"] for one in said["masks"][0]}
    assert said["text"].startswith(f"my {said['masks'][0][0]['token']} is lost")
    assert (
        api.predict(run, ["a <mask>"])[0]["masks"][0]
        == api.predict(run, [{"text": "a [MASK]"}])[0]["masks"][0]
    )
    with pytest.raises(RunError, match="nothing is hidden in 'my card'"):
        api.predict(run, ["my card"])
    with pytest.raises(RunError, match="the model sees 24 at once"):
        api.predict(run, ["[MASK] " * 80])


def test_evaluate_agrees_with_transformers_and_the_run(place: Path, alone: dict[str, Any]) -> None:
    run = place / "runs" / "alone"
    found = api.evaluate(run)
    *_, last = read_events(run, "validation")
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    config = load_config(run / "config.yaml")
    source = masked_source(config, api.prepare(config), "validation", shift=False)
    assert source is not None
    batch = source.load(0, range(source.samples_in_epoch(0)))
    model = AutoModelForMaskedLM.from_pretrained(run / "export")
    with torch.no_grad():
        loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["targets"] == int((batch["labels"] != -100).sum())


def test_two_workers_learn_the_same_as_one_and_as_one_that_stopped(place: Path, whole: Path) -> None:
    words = (f"model={place / 'bert'}", *FURTHER)
    train(place, "two", *words, "replicas=2", "train.steps=12", "sync.membership=fixed")
    train(place, "parts", *words, "replicas=1", "train.steps=6")
    train(place, "parts", *words, "replicas=1", "train.steps=12", resume=True)
    losses = {
        name: {
            event["step"]: event["loss"]
            for event in read_events(place / "runs" / name, "step")
            if "loss" in event
        }
        for name in ("two", "whole", "parts")
    }
    assert losses["two"] == pytest.approx(losses["whole"], rel=1e-3)
    assert losses["parts"] == pytest.approx(losses["whole"], rel=1e-5)


@pytest.mark.slow
def test_from_nothing_and_then_fine_tuned(place: Path) -> None:
    train(place, "new", "model=100K", "data.tokenizer=bpe", "data.vocabulary=300", "replicas=1", "train.steps=30",
          "task.mask_by=spans", "task.mask=0.2", "train.learning_rate=5e-3")  # fmt: skip
    export = place / "runs" / "new" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert tokenizer.mask_token == "<|mask|>" and tokenizer.cls_token_id != tokenizer.sep_token_id
    ids = tokenizer("the card <|mask|>")["input_ids"]
    assert (
        ids[0] == tokenizer.cls_token_id
        and ids[-1] == tokenizer.sep_token_id
        and tokenizer.mask_token_id in ids
    )
    config = load_config(
        None,
        [
            *(
                "name=tuned",
                f"runs={place / 'runs'}",
                f"data.source={place / 'intents.tsv'}",
                "task=classify",
            ),
            *(f"data.cache={place / 'cache'}", f"model={export}", "data.sequence=24", "data.validation=0.25"),
            *("train.precision=fp32", "train.steps=100", "train.learning_rate=3e-3", "replicas=1"),
        ],
    )
    report = api.train(config, console=False)
    assert report["best"]["metrics"]["accuracy"] > 0.7
    assert any(f"weights of {export}, with a new head" in choice for choice in report["choices"])


def test_what_it_cannot_do_is_said(
    place: Path, alone: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(place / "runs" / "alone")
    for command, said in {
        ("generate", run, "a"): "learned to guess what is hidden in texts, not to go on from a text",
        ("compress", run): "learned to guess what is hidden in texts, of which no smaller model is made here",
        ("serve", run): "learned to guess what is hidden in texts",
        ("export", run, "--format", "gguf"): "a GGUF file is for a causal language model",
        ("evaluate", run, "--file", str(place / "text.jsonl")): "learned from no labelled examples",
    }.items():
        assert tutti_command(list(command)) == 2, command
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["evaluate.prompts=[no mask]"], RunError, "nothing is hidden in 'no mask'"),
        (["data.sequence=65"], ModelError, "sees 64 tokens at once, but data.sequence is 65"),
        (["layout={context: 2}"], ConfigError, "looks both ways"),
        (["memory.budget=1GB"], ConfigError, "memory.budget is kept for causal language models only"),
        (["task.kind=classify", "task.mask=0.2"], ConfigError, "mask belongs to kind masked_language_model"),
        (["regularise.r_drop=1.0"], ConfigError, "regularise is for models that are asked"),
        (["distil=somewhere"], ConfigError, "distil"),
        (["groups=2"], ConfigError, "groups are of language models"),
        (["tune=prompt"], ConfigError, "tune.method: prompt"),
    ],
)
def test_what_cannot_be_is_refused(place: Path, words: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as refused:
        train(place, "refused", f"model={place / 'bert'}", "train.steps=1", *words)
    assert said in str(refused.value)
    assert not (place / "runs" / "refused").exists()


def test_a_tokenizer_without_a_mask(place: Path) -> None:
    plain = place / "plain"
    prepared = api.prepare(config_of(place, "any", "task=language_model", "data.tokenizer=characters"))
    plain.mkdir()
    for file in prepared.tokenizer_directory.iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="has no mask token"):
        train(place, "refused", "model=100K", f"data.tokenizer={plain}")


@pytest.mark.slow
def test_lora_keeps_what_the_encoder_knows(place: Path, whole: Path) -> None:
    with pytest.raises(ConfigError, match="has no head that guesses"):
        train(place, "lora", f"model={place / 'bert'}", "tune=lora", "train.steps=4", "replicas=1")
    report = train(place, "lora", f"model={whole / 'export'}", "tune=lora", "train.steps=4", "replicas=1")
    assert report["state"] == "finished"
    AutoModelForMaskedLM.from_pretrained(place / "runs" / "lora" / "export")
