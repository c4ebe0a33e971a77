"""Translation and summarisation: what is learned of two texts, how it is scored, and models of both kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, T5Config

from encoders import write_jsonl
from tutti import api
from tutti.cli import run as tutti_command
from tutti.config import load_config
from tutti.config.task import TaskConfig
from tutti.core import DataError
from tutti.tasks import Record, make_text_task, make_writing_task
from tutti.tasks.rewrite import Words
from tutti.tasks.sequences import EncoderDecoder

WORDS = {"one": "un", "two": "deux", "three": "trois", "red": "rouge", "cat": "chat", "dog": "chien"}
T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("writing")
    pairs = [(a, b) for a in WORDS for b in WORDS]
    records = [{"source": f"{a} {b}", "target": f"{WORDS[b]} {WORDS[a]}"} for a, b in pairs]
    write_jsonl(place / "pairs.jsonl", records)
    write_jsonl(place / "test.jsonl", records[::5])
    return place


def words_of(place: Path, name: str, model: dict[str, Any] | str, *more: str) -> list[str]:
    shape = [f"model={model}"] if isinstance(model, str) else [f"model={json.dumps({'config': model})}"]
    return [
        *(f"name={name}", f"runs={place / 'runs'}", f"data.cache={place / 'cache'}", "task=translate"),
        *(f"data.source={place / 'pairs.jsonl'}", f"data.validation_source={place / 'pairs.jsonl'}"),
        *(f"data.test_source={place / 'test.jsonl'}", "data.tokenizer=characters", "data.sequence=48"),
        # What is judged is learned here: the question is whether a rule can be learned at all.
        *("data.deduplicate=false", "train.precision=fp32", "train.batch=12", "sync.shares=even"),
        *("evaluate.new_tokens=24", "train.steps=4", *shape, *more),
    ]


def train(place: Path, name: str, model: dict[str, Any] | str, *more: str) -> dict[str, Any]:
    return api.train(load_config(None, words_of(place, name, model, *more)), console=False)


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        pytest.param("60K", 260, id="continues text", marks=pytest.mark.slow),
        pytest.param(T5, 300, id="encoder-decoder"),
    ],
)
def test_a_model_learns_to_translate(place: Path, model: dict[str, Any] | str, steps: int) -> None:
    """And plain transformers opens it, and writes the same with nothing but what was exported."""
    name = "rule" if isinstance(model, str) else "rule-t5"
    more = (f"train.steps={steps}", "train.learning_rate=6e-3", "replicas=1", 'evaluate.prompts=["two cat"]')
    report = train(place, name, model, *more)
    run = place / "runs" / name
    assert report["test"]["metrics"]["chrf"] > 90
    found = api.evaluate(run, split="test")
    assert found["chrf"] == pytest.approx(report["test"]["metrics"]["chrf"])
    assert found["loss"] == pytest.approx(report["test"]["loss"], rel=1e-4)
    said = [one["text"] for one in api.predict(run, ["one red", {"source": "dog three"}])]
    assert said == ["rouge un", "trois chien"]

    tokenizer: Any = AutoTokenizer.from_pretrained(run / "export")
    if isinstance(model, str):
        plain: Any = AutoModelForCausalLM.from_pretrained(run / "export")
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": "dog three"}], return_tensors="pt", return_dict=True
        )
    else:
        plain = AutoModelForSeq2SeqLM.from_pretrained(run / "export")
        inputs = tokenizer("dog three", return_tensors="pt", return_token_type_ids=False)
    written = plain.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
    written = written[inputs["input_ids"].shape[1] :] if isinstance(model, str) else written
    assert tokenizer.decode(written, skip_special_tokens=True) == "trois chien"


def test_two_workers_learn_what_one_does(place: Path) -> None:
    """An encoder-decoder, whose rows are padded and of unlike length, over two workers and over one that is sharded."""
    one = train(place, "alone", T5, "replicas=1", "train.micro_batch=3")
    two = train(place, "both", T5, "replicas=2", "sync.membership=fixed")
    split = train(place, "split", T5, "replicas=1", "layout={shard: 2}")
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)
    assert split["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)


def test_the_loss_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(
        T5Config(
            **{k: v for k, v in T5.items() if k != "model_type"}, vocab_size=40, decoder_start_token_id=0
        )
    )
    ids = torch.randint(3, 40, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[2, 2:] = 0
    labels = torch.randint(3, 40, (3, 5))
    labels[0, 3:] = labels[2, 1:] = -100
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss = EncoderDecoder(model)({"input_ids": ids, "attention_mask": mask, "labels": labels})
    assert int(loss.targets) == 9
    torch.testing.assert_close(loss.total / 9, expected)


def test_bleu_and_chrf_by_hand() -> None:
    """Of one sentence whose n-grams can be counted: 4 of 5 words, 3 of 4, 2 of 3 and 1 of 2 pairs, triples, fours."""
    task = make_writing_task(TaskConfig(kind="translate"))
    wanted = [{"given": "x", "wanted": "the cat sat here now"}]
    found = task.score(["the cat sat here then"], wanted)
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert task.score(["the cat sat here now"], wanted) == pytest.approx({"bleu": 100, "chrf": 100})


def test_rouge_by_hand() -> None:
    task = make_writing_task(TaskConfig(kind="summarise"))
    wanted = [{"given": "x", "wanted": "lists all open accounts"}, {"given": "x", "wanted": "stops it"}]
    found = task.score(["lists open accounts", "stops it"], wanted)
    # First: 3 words of 3 and of 4; 1 pair of 2 and of 3; longest common 3. The second is right.
    assert found["rouge1"] == pytest.approx(100 * (6 / 7 + 1) / 2)
    assert found["rouge2"] == pytest.approx(100 * (2 / 5 + 1) / 2)
    assert found["rougeL"] == pytest.approx(100 * (6 / 7 + 1) / 2)


def test_rouge_counts_the_words_of_any_alphabet() -> None:
    task = make_writing_task(TaskConfig(kind="summarise"))
    for right, wrong in (("Кот сидит дома", "Кот сидит там"), ("Größe über alles", "Größe über allem")):
        wanted = [{"given": "x", "wanted": right}]
        assert task.score([right], wanted)["rouge1"] == pytest.approx(100)
        assert task.score([wrong], wanted)["rouge1"] == pytest.approx(100 * 2 / 3)
    assert Words().tokenize("हिन्दी भाषा, don't stop_it 7") == ["हिन्दी", "भाषा", "don", "t", "stop", "it", "7"]


def test_texts_without_spaces_are_scored_by_their_signs() -> None:
    translate, summarise = (make_writing_task(TaskConfig(kind=kind)) for kind in ("translate", "summarise"))
    wanted = [{"given": "x", "wanted": "私は日本語を話す"}]
    assert translate.score(["私は日本語を話す"], wanted)["bleu"] == pytest.approx(100)
    # 8 signs, of which 7 are right, and 7 pairs, of which 6 are.
    assert summarise.score(["私は日本語を話せ"], wanted)["rouge1"] == pytest.approx(100 * 7 / 8)
    assert summarise.score(["私は日本語を話せ"], wanted)["rouge2"] == pytest.approx(100 * 6 / 7)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"source": "x"}, "no field 'target'"),
        ({"source": " ", "target": "x"}, "'source' is empty"),
        ({"source": "x", "target": 3}, "'target' is int, not text"),
    ],
)
def test_a_pair_that_cannot_be_is_refused_by_its_place(record: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        make_text_task(TaskConfig(kind="translate")).example(Record("f:1", record))
    assert "f:1" in str(caught.value)


def test_a_long_text_loses_its_own_end_and_not_what_is_made_of_it(place: Path) -> None:
    """Both when it is learned from and when it is asked about."""
    long = "abcdefgh " * 40
    source = write_jsonl(
        place / "long.jsonl", [{"text": f"{n} {long}", "summary": f"word {n}"} for n in range(9)]
    )
    words = [
        *(
            "name=long",
            f"runs={place / 'runs'}",
            f"data.cache={place / 'cache'}",
            "task=summarise",
            "model=60K",
        ),
        *(f"data.source={source}", f"data.validation_source={source}", "data.deduplicate=false"),
        *(
            "data.tokenizer=characters",
            "data.sequence=64",
            "train.steps=2",
            "replicas=1",
            "evaluate.new_tokens=16",
        ),
    ]
    config = load_config(None, words)
    api.train(config, console=False)
    prepared = api.prepare(config)
    table = prepared.parts["train"].table
    assert prepared.parts["train"].cut == 9
    tokenizer: Any = AutoTokenizer.from_pretrained(prepared.tokenizer_directory)
    for number in range(len(table)):
        row = table[number]
        assert len(row["input_ids"]) == 64
        learned = tokenizer.decode([at for at in row["targets"] if at >= 0])
        assert learned == f"word {number}<|endoftext|>"
        assert tokenizer.decode(row["input_ids"]).startswith(f"{number} abcdefgh")
    (said,) = api.predict(place / "runs" / "long", [long])
    assert len(said["text"]) <= 16


def test_a_translator_is_not_asked_to_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(place, "short", "60K", "replicas=1")
    assert tutti_command(["generate", str(place / "runs" / "short"), "one"]) == 2
    assert "ask it with `tutti predict" in capsys.readouterr().err
