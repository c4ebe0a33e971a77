"""`tutti compress` on real runs of tiny models that write, from their checkpoints to directories that go on writing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from encoders import write_jsonl
from tutti import api
from tutti.cli import run as tutti_command
from tutti.compress.make import Maker
from tutti.compress.recipes import Recipe
from tutti.compress.table import Line, Metric
from tutti.compress.timing import Timing
from tutti.compress.writer import WriterSubject
from tutti.config import load_config
from tutti.core import ConfigError, ModelError, RunError
from tutti.models.quantized import QuantizedEmbedding, QuantizedLinear
from tutti.package import open_writer

PROMPT = "The cat "
#: Its table, which is its head as well, is large enough to be written in fewer bits.
SHAPE = "{model_type: llama, hidden_size: 384, intermediate_size: 256, num_hidden_layers: 2, num_attention_heads: 6, "
LLAMA = SHAPE + "num_key_value_heads: 2, tie_word_embeddings: true}"


def sentences(count: int) -> str:
    random = np.random.default_rng(0)
    who, does = ["cat", "dog", "bird", "king"], ["sees", "likes", "fears", "calls"]
    made = (f"The {random.choice(who)} {random.choice(does)} the {random.choice(who)}." for _ in range(count))
    return " ".join(made)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has read a hundred or so simple sentences."""
    place = tmp_path_factory.mktemp("writers")
    (place / "text.txt").write_text(sentences(1500))
    words = [
        *("name=tale", f"runs={place / 'runs'}", f"data.source={place / 'text.txt'}", "data.sequence=32"),
        *(f"data.cache={place / 'cache'}", f"model={{config: {LLAMA}}}", "data.vocabulary=288"),
        *("data.validation=0.1", "train.precision=fp32", "train.learning_rate=3e-3", "train.steps=60"),
        *("train.batch=8", "replicas=1"),
    ]
    api.train(load_config(None, words), console=False)
    return place / "runs" / "tale"


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    return api.compress(run, recipes=["int8", "int4-gptq"], target="3x smaller, <5% worse", console=False)


def perplexity_by_hand(model: Any, run: Path) -> float:
    """exp of the mean loss over the validation windows, by transformers' own loss of each."""
    subject = WriterSubject.of(run)
    source = subject.job.validation_data
    assert source is not None
    losses, targets = 0.0, 0
    with torch.no_grad():
        for number in range(source.samples_in_epoch(0)):
            batch = source.load(0, [number])
            logits = model(batch["input_ids"]).logits[0].double().log_softmax(1)
            wanted = batch["labels"][0]
            losses -= float(logits[torch.arange(len(wanted)), wanted.clamp_min(0)][wanted >= 0].sum())
            targets += int((wanted >= 0).sum())
    return math.exp(losses / targets)


@pytest.mark.slow
def test_the_table_tells_the_truth_of_each_recipe(run: Path, report: dict[str, Any]) -> None:
    lines = {line["recipe"]: line for line in report["lines"]}
    assert list(lines) == ["fp32", "int8", "int4-gptq"]
    assert (report["metric"], report["larger_is_better"], report["task"]) == (
        "perplexity",
        False,
        "language_model",
    )
    export = AutoModelForCausalLM.from_pretrained(run / "export").eval()
    before = perplexity_by_hand(export, run)
    assert lines["fp32"]["quality"]["perplexity"] == pytest.approx(before, rel=1e-4)
    assert before < 20, "it has learned something that can be lost"
    kept = perplexity_by_hand(open_writer(run / "compressed").model, run)
    assert lines[report["kept"]]["quality"]["perplexity"] == pytest.approx(kept, rel=1e-4)
    measured = api.evaluate(run / "compressed")
    # In whole numbers what a row gives depends somewhat on the rows beside it.
    assert math.exp(measured["loss"]) == pytest.approx(kept, rel=1e-3)
    assert measured["step"] == api.evaluate(run)["step"] and measured["bits_per_byte"] > 0
    for line in lines.values():
        assert line["worse"] == pytest.approx(line["quality"]["perplexity"] / before - 1, rel=1e-3, abs=1e-6)
        assert line["tokens_per_second"] == pytest.approx(32 / line["seconds_batch_32"])
        assert line["prompt_tokens_per_second"] > 0 and line["memory_bytes"] > 0
    assert lines["int8"]["times_smaller"] > 3 and lines["int4-gptq"]["times_smaller"] > 4.5
    page = (run / "compression.md").read_text()
    assert "ms a token, batch 1" in page and "perplexity: of what was read back" in page


def test_weights_of_8_bits_say_nearly_the_same(run: Path, tmp_path: Path) -> None:
    """Also the tied head, which is the table's."""
    made = Maker(WriterSubject.of(run), tmp_path).make(Recipe.of("int8-weights"))
    model = open_writer(made.directory).model
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    assert isinstance(model.get_output_embeddings(), QuantizedLinear)
    whole = AutoModelForCausalLM.from_pretrained(run / "export").eval()
    ids = AutoTokenizer.from_pretrained(run / "export")(PROMPT * 3, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, found = whole(ids).logits, model(ids).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    by_hand = whole.get_input_embeddings().weight
    scale = by_hand.abs().amax(1, keepdim=True) / 127
    rounded = (by_hand / scale).round() * scale
    torch.testing.assert_close(model.get_output_embeddings().codes.weight(), rounded, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_kept_goes_on_writing(run: Path, report: dict[str, Any]) -> None:
    kept = run / "compressed"
    assert report["kept"] in ("int8", "int4-gptq")
    said = api.generate(kept, [PROMPT, PROMPT], new_tokens=12, temperature=0.0)
    assert said[0] == said[1] == api.generate(run, [PROMPT], new_tokens=12, temperature=0.0)[0]
    with pytest.raises(RunError, match="learned from no labelled examples"):
        api.predict(kept, ["x"])


@pytest.mark.slow
def test_fewer_layers_heads_and_channels_learn_again_from_what_they_were(run: Path, tmp_path: Path) -> None:
    maker = Maker(WriterSubject.of(run), tmp_path, recovery_steps=25)
    made = maker.make(Recipe.of("layers:1+heads:0.5+channels:0.1"))
    place = run / "recovered" / "layers-1-heads-0.5-channels-0.1"
    config = load_config(place / "config.yaml")
    assert config.distil.teachers == [str(run)] and config.train.steps == 25
    before = json.loads(
        (run / "recovered" / "layers-1-heads-0.5-channels-0.1-before" / "config.json").read_text()
    )
    assert (before["num_hidden_layers"], before["intermediate_size"]) == (1, 32)
    assert (before["num_attention_heads"], before["num_key_value_heads"], before["head_dim"]) == (3, 1, 64)
    hurt = maker.subject.quality(AutoModelForCausalLM.from_pretrained(f"{place}-before"))
    whole = maker.subject.quality(maker.subject.model)
    assert whole["perplexity"] < made.quality["perplexity"] < hurt["perplexity"]
    again = AutoModelForCausalLM.from_pretrained(place / "export")
    assert perplexity_by_hand(again, run) == pytest.approx(made.quality["perplexity"], rel=1e-4)


def test_a_teacher_of_other_words_or_shorter_sight_is_refused(run: Path, tmp_path: Path) -> None:
    text = run.parent.parent / "text.txt"
    words = [
        *("name=pupil", f"runs={tmp_path / 'runs'}", f"data.source={text}", f"distil={run}"),
        *(f"data.cache={tmp_path / 'cache'}", "model=100K", "train.steps=2", "replicas=1"),
        *("data.validation=0.3", "train.precision=fp32"),
    ]
    with pytest.raises(ModelError, match="has another tokenizer"):
        api.train(load_config(None, [*words, "data.vocabulary=280", "data.sequence=32"]), console=False)
    ours = f"data.tokenizer={run / 'export'}"
    with pytest.raises(ModelError, match=r"sees 2048 tokens at once, but data.sequence is 3000"):
        api.train(load_config(None, [*words, ours, "data.sequence=3000"]), console=False)
    with pytest.raises(ConfigError, match=r"layout.tensor splits samples or logits"):
        load_config(None, [*words, ours, "layout={tensor: 2}"])


@pytest.mark.slow
def test_onnxruntime_computes_the_same(run: Path, tmp_path: Path) -> None:
    """By nothing but what the directory holds: logits within 1e-4 of the largest, perplexity within 0.1."""
    made = api.export(run, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    whole = AutoModelForCausalLM.from_pretrained(run / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(
        [PROMPT * 3, PROMPT, PROMPT * 2], return_tensors="pt", padding=True, padding_side="right"
    )
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = whole(**given).logits[given["attention_mask"].bool()]
    (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in given.items()})
    found = torch.from_numpy(found)[given["attention_mask"].bool()]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()

    def by_onnx(ids: torch.Tensor) -> SimpleNamespace:
        (logits,) = session.run(
            ["logits"], {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        )
        return SimpleNamespace(logits=torch.from_numpy(logits))

    assert perplexity_by_hand(by_onnx, run) == pytest.approx(perplexity_by_hand(whole, run), abs=0.1)
    again = api.export(run, made, format="onnx")
    assert again == made and not list(tmp_path.glob(".*")), "what was exported may be replaced"
    with pytest.raises(RunError, match="exists and is no model that tutti exported"):
        api.export(run, run, format="onnx")


def test_onnx_is_refused_before_anything_is_made(run: Path) -> None:
    with pytest.raises(ConfigError, match="would read the whole text again"):
        api.compress(run, recipes=["int8", "onnx+int8"], console=False)


def test_what_misses_the_target_is_not_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compress", str(run), "--try", "magnitude:0.9", "--to", str(tmp_path / "none")]
    assert tutti_command(words) == 2
    assert "% worse, not at most 1.00%" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_command_line_calls_times_what_the_table_does(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At batch 32 it is the time in which 32 tokens are written, of 32 texts: none of a token."""
    before = Line("fp32", {"perplexity": 9.0}, 100, Timing(1.0, 1.0, 1, read=1.0))
    line = before.as_json(before, Metric("perplexity", larger_is_better=False), WriterSubject.words)
    made = {
        "run": str(run),
        "metric": "perplexity",
        "target": "t",
        "kept": "fp32",
        "directory": "d",
        "lines": [line],
    }
    monkeypatch.setattr(api, "compress", lambda *_, **__: made)
    monkeypatch.setenv("COLUMNS", "200")
    assert tutti_command(["compress", str(run)]) == 0
    heads = next(line for line in capsys.readouterr().out.splitlines() if "recipe" in line)
    assert [head.strip() for head in heads.strip("┃│ ").replace("│", "┃").split("┃")] == [
        *("recipe", "perplexity", "MB", "memory, MB", "ms a token, batch 1", "ms, batch 32")
    ]


@pytest.mark.slow
def test_an_assistant_made_smaller_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"prompt": f"{'Red' if n % 2 else 'Green'} {n}?", "response": "stop" if n % 2 else "go"}
        for n in range(80)
    ]
    source = write_jsonl(tmp_path / "talks.jsonl", records)
    words = [
        *("task=chat", f"data.source={source}", "data.tokenizer=characters", "data.sequence=64", "model=60K"),
        *("train.steps=120", "train.batch=16", "train.learning_rate=5e-3", "train.precision=fp32"),
        *("replicas=1", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "name=talk"),
        "data.validation=0.1",
    ]
    api.train(load_config(None, words), console=False)
    run = tmp_path / "runs" / "talk"
    assert tutti_command(["compress", str(run), "--try", "int8", "--target", "<20% worse"]) == 0
    assert f"tutti generate {run / 'compressed'}" in capsys.readouterr().out.replace("\n", "")
    kept = run / "compressed"
    assert api.generate(kept, ["Red 7?", "Green 8?"], new_tokens=12, temperature=0.0) == ["stop", "go"]
    assert json.loads((kept / "tutti.json").read_text())["task"]["kind"] == "chat"
    assert api.predict(kept, ["Red 9?"]) == [{"text": "stop"}]


T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
}  # fmt: skip


def test_a_translator_is_made_smaller_and_teaches(tmp_path: Path) -> None:
    """An encoder-decoder."""
    words = {"one": "un", "two": "deux", "red": "rouge", "cat": "chat"}
    pairs = [{"source": f"{a} {b}", "target": f"{words[b]} {words[a]}"} for a in words for b in words]
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    settings = [
        *(f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "task=translate", "replicas=1"),
        *(f"data.source={source}", f"data.validation_source={source}", "data.deduplicate=false"),
        *("data.tokenizer=characters", "data.sequence=32", "train.precision=fp32", "train.batch=8"),
        *("train.learning_rate=6e-3", "evaluate.new_tokens=12"),
    ]
    model = f"model={json.dumps({'config': T5})}"
    api.train(load_config(None, [*settings, "name=rule", model, "train.steps=60"]), console=False)
    run = tmp_path / "runs" / "rule"
    report = api.compress(run, recipes=["int8-weights"], target="<5% worse", console=False)
    loss = api.evaluate(run)["loss"]
    assert report["lines"][0]["quality"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    kept = run / "compressed"
    assert any(isinstance(module, QuantizedLinear) for module in open_writer(kept).model.modules())
    assert api.predict(kept, ["one red", {"source": "cat two"}]) == api.predict(run, ["one red", "cat two"])
    assert set(api.evaluate(kept, file=source)) >= {"bleu", "chrf"}
    with pytest.raises(RunError, match="not to go on from a text"):
        api.generate(kept, ["one"])
    small = f"model={json.dumps({'config': T5 | {'d_ff': 32}})}"
    pupil = [*settings, "name=pupil", small, "train.steps=4", f"distil={run}"]
    assert api.train(load_config(None, pupil), console=False)["state"] == "finished"
