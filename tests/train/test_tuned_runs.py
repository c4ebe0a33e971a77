"""Runs of which a part learns: on one worker and on two, interrupted, exported, and asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    T5Config,
)

import tutti
from encoders import write_encoder, write_intents, write_jsonl
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import Config, load_config
from tutti.core import read_events

TEXT = "the card is lost and the bank is closed . where is my money ? why did the transfer arrive late ?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of three kinds with one tokenizer, and examples."""
    place = tmp_path_factory.mktemp("tuned")
    write_intents(write_encoder(place / "bert"))
    words = TEXT.split()
    texts = [" ".join(words[(n * 5 + k) % len(words)] for k in range(8 + n % 5)) for n in range(120)]
    write_jsonl(place / "texts.jsonl", [{"text": text} for text in texts])
    write_jsonl(
        place / "pairs.jsonl", [{"source": t, "target": " ".join(reversed(t.split()[:4]))} for t in texts]
    )
    write_jsonl(place / "talks.jsonl", [{"prompt": t, "response": " ".join(t.split()[:3])} for t in texts])
    vocabulary = AutoModelForSequenceClassification.from_pretrained(place / "bert").config.vocab_size
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=3, eos_token_id=3, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=3, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(llama).save_pretrained(place / "llama")
    AutoModelForSeq2SeqLM.from_config(t5).save_pretrained(place / "t5")
    for name in ("llama", "t5"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(place / "bert" / file, place / name / file)
        told = json.loads((place / name / "tokenizer_config.json").read_text())
        (place / name / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": "[SEP]"}))
    return place


DATA = {
    "classify": ("bert", "bert/intents.tsv"),
    "language_model": ("llama", "texts.jsonl"),
    "chat": ("llama", "talks.jsonl"),
    "translate": ("t5", "pairs.jsonl"),
}


def config_of(place: Path, name: str, kind: str, *words: str) -> Config:
    model, source = DATA[kind]
    return load_config(
        None,
        [
            *(f"name={name}", f"runs={place / 'runs'}", f"task={kind}", f"model={place / model}"),
            *(f"data.source={place / source}", f"data.cache={place / 'cache'}", "data.sequence=32"),
            *("data.validation=0.2", "train.precision=fp32", "train.learning_rate=1e-2", "train.steps=20"),
            *("train.batch=8", "sync.shares=even", "replicas=1", "model.dropout=0.0", "evaluate.every=10"),
            *words,
        ],
    )


def train(place: Path, name: str, kind: str, *words: str, **options: Any) -> dict[str, Any]:
    return api.train(config_of(place, name, kind, *words), console=False, **options)


def exported(place: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(place / "runs" / name / "export" / "model.safetensors")


ADALORA = ("tune={method: adalora, rank: 2}", "checkpoint.every=5", "checkpoint.keep=9", "evaluate.every=20")


@pytest.fixture(scope="module")
def adalora(place: Path) -> dict[str, Any]:
    return train(place, "adalora", "classify", *ADALORA)


def ranks(place: Path, name: str) -> Any:
    return AdaLoraConfig.from_pretrained(str(place / "runs" / name / "export" / "adapters")).rank_pattern


def test_two_workers_give_the_same_ranks_as_one(place: Path, adalora: dict[str, Any]) -> None:
    train(place, "adalora-two", "classify", *ADALORA, "replicas=2")
    assert ranks(place, "adalora-two") == ranks(place, "adalora")
    kept = [sum(pattern) for pattern in ranks(place, "adalora").values()]
    assert sum(kept) == 2 * len(kept) and len(set(kept)) > 1
    one, two = exported(place, "adalora"), exported(place, "adalora-two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    losses = [
        [e["loss"] for e in read_events(place / "runs" / name, "step") if e["rank"] == 0]
        for name in ("adalora", "adalora-two")
    ]
    assert losses[1] == pytest.approx(
        losses[0], rel=1e-4
    )  # the loss alone, without the penalty on either side


def test_adalora_waits_for_a_late_gradient(place: Path) -> None:
    report = train(place, "adalora-late", "classify", *ADALORA, "sync={policy: allreduce, overlap: 1}")
    assert report["state"] == "finished"
    kept = [sum(pattern) for pattern in ranks(place, "adalora-late").values()]
    assert sum(kept) == 2 * len(kept)


def test_what_adalora_knows_of_ranks_is_saved(place: Path, adalora: dict[str, Any]) -> None:
    again = place / "runs" / "adalora-again"
    shutil.copytree(place / "runs" / "adalora", again)
    for step in (15, 20):
        shutil.rmtree(again / "checkpoints" / f"step-{step}", ignore_errors=True)
    assert {path.name for path in (again / "checkpoints").glob("step-*")} == {"step-5", "step-10"}
    train(place, "adalora-again", "classify", *ADALORA, resume=True)
    one, other = exported(place, "adalora"), exported(place, "adalora-again")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_adapters_of_a_run_open_in_peft_and_begin_another(place: Path, adalora: dict[str, Any]) -> None:
    export = place / "runs" / "adalora" / "export"
    whole = AutoModelForSequenceClassification.from_pretrained(export).eval()
    fresh = AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=3)
    opened = PeftModel.from_pretrained(fresh, export / "adapters").eval()
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    torch.testing.assert_close(opened(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-5)
    report = train(place, "after", "classify", f"model={export / 'adapters'}", "train.learning_rate=1e-9")
    assert any("adalora adapters" in choice and "merged" in choice for choice in report["choices"])
    after = AutoModelForSequenceClassification.from_pretrained(place / "runs" / "after" / "export").eval()
    torch.testing.assert_close(after(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_opened_is_said_before_anything_is_written(
    place: Path, adalora: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "adapters"
    shutil.copytree(place / "runs" / "adalora" / "export" / "adapters", broken)
    (broken / "base.json").write_text('{"model.safetensors": "0"}')
    for kind, words, said in (
        ("classify", {"model": str(broken)}, "other weights"),
        ("chat", {"tune": "prompt"}, "several stand side by side"),
        ("classify", {"tune": "adalora", "sync": "gossip"}, "sync.policy"),
    ):
        model, source = DATA[kind]
        given = {"name": "none", "runs": str(tmp_path / "runs"), "task": kind, "model": str(place / model)}
        file = tmp_path / "tutti.yaml"
        file.write_text(json.dumps(given | {"data": {"source": str(place / source), "sequence": 32}} | words))
        assert tutti_command(["train", str(file)]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("language_model", "lora"),
        ("language_model", "last"),
        ("chat", "adalora"),
        ("chat", "ia3"),
        ("translate", "lora"),
        ("translate", "adalora"),
        ("translate", "last"),
    ],
)
def test_a_part_of_a_writer_learns(place: Path, kind: str, method: str) -> None:
    """What is exported is one ordinary model; what was to stay is as it was."""
    name = f"{kind}-{method}"
    layers = ("tune.layers=1",) if method == "last" else ()
    report = train(place, name, kind, f"tune.method={method}", *layers)
    losses = [event["loss"] for event in read_events(place / "runs" / name, "validation")]
    assert report["state"] == "finished" and losses[-1] < losses[0]
    before = load_file(place / DATA[kind][0] / "model.safetensors")
    after = exported(place, name)
    assert before.keys() == after.keys()
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert changed and not any("embed" in key or "shared" in key for key in changed)
    if method == "last":
        assert not any("layers.0" in key or "block.0" in key or "encoder" in key for key in changed)
        assert kind == "translate" or "lm_head.weight" in changed
    else:
        assert not any("norm" in key for key in changed)
        factory = AutoModelForSeq2SeqLM if kind == "translate" else AutoModelForCausalLM
        plain = factory.from_pretrained(place / DATA[kind][0])
        opened = PeftModel.from_pretrained(plain, place / "runs" / name / "export" / "adapters")
        whole = factory.from_pretrained(place / "runs" / name / "export").eval()
        ids = torch.tensor([[2, 7, 9, 11, 3]])
        more = {"decoder_input_ids": ids} if kind == "translate" else {}
        torch.testing.assert_close(
            opened.eval()(input_ids=ids, **more).logits,
            whole(input_ids=ids, **more).logits,
            rtol=1e-3,
            atol=1e-4,
        )
    assert api.evaluate(place / "runs" / name)["loss"] == pytest.approx(losses[-1], rel=1e-4)


def test_frozen_parameters_are_neither_sent_nor_have_optimizer_state(place: Path) -> None:
    train(place, "sent", "language_model", "tune.method=lora", "replicas=2", "sync.membership=fixed")
    adapters = load_file(place / "runs/sent/export/adapters/adapter_model.safetensors")
    trained = sum(tensor.numel() for tensor in adapters.values())
    steps = [e for e in read_events(place / "runs" / "sent", "step") if e["rank"] == 0]
    grown = steps[-1]["bytes_sent"] - steps[-2]["bytes_sent"]
    totals = 5 * 8  # float64: loss, targets, tokens, whether to stop, whether because patience is at its end
    assert grown == 4 * trained + totals  # two replicas: each sends half of it twice
    saved = FileSystemReader(place / "runs" / "sent" / "checkpoints" / "step-20").read_metadata()
    moments = {name for name in saved.state_dict_metadata if name.endswith("exp_avg")}
    assert len(moments) == len(adapters) and all("lora_" in name for name in moments)


@pytest.mark.parametrize(
    ("kind", "method"), [("language_model", "lora"), ("chat", "last"), ("classify", "ia3")]
)
def test_a_sharded_model_learns_the_same_part(place: Path, kind: str, method: str) -> None:
    names = (f"one-{kind}", f"sharded-{kind}")
    tune = f"tune={{method: {method}{', layers: 1' if method == 'last' else ''}}}"
    train(place, names[0], kind, tune)
    train(place, names[1], kind, tune, "layout=2")
    one, other = (exported(place, name) for name in names)
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("kind", ["classify", "translate"])
def test_a_prompt_is_learned_and_opens_in_peft(place: Path, kind: str) -> None:
    name = f"prompt-{kind}"
    words = ("tune={method: prompt, tokens: 4}", "train.learning_rate=3e-2")
    report = train(place, name, kind, *words, "train.steps=60")
    run = place / "runs" / name
    losses = [event["loss"] for event in read_events(run, "validation")]
    assert report["state"] == "finished" and min(losses) < losses[0]
    assert not (run / "export" / "config.json").exists() and (run / "export" / "tokenizer.json").is_file()
    texts = ["my card is lost", "why is the transfer late"]
    said = api.predict(run, texts)
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    job = tutti.trained.load_trained(run).job
    mine: Any = job.objective.model
    factory: Any = AutoModelForSequenceClassification if kind == "classify" else AutoModelForSeq2SeqLM
    options = {"num_labels": 3} if kind == "classify" else {}
    opened = PeftModel.from_pretrained(
        factory.from_pretrained(place / DATA[kind][0], **options), run / "export"
    ).eval()
    more = {"decoder_input_ids": ids} if kind == "translate" else {"attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(opened(input_ids=ids, **more).logits, mine(input_ids=ids, **more).logits)
    assert len(said) == 2
    train(place, f"{name}-on", kind, *words, f"model={run / 'export'}", "train.steps=2")
    if kind == "classify":
        assert report["best"]["metrics"]["accuracy"] == api.evaluate(run)["accuracy"]
        assert tutti_command(["compress", str(run)]) == 2
