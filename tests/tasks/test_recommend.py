"""Recommendation: what is judged and how, against NumPy; a rule of behaviour, and items that only words describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from encoders import write_jsonl
from tutti import api
from tutti.config import load_config
from tutti.config.data import DataConfig
from tutti.config.task import RegulariseConfig, TaskConfig
from tutti.core import DataError
from tutti.data.labelled import ListedRows, PreparedExamples, Reader, encoder_in, prepare_examples
from tutti.tasks import Labels, Record, make_task
from tutti.tasks.recommend import NextItem, Recommend

ITEMS = [f"item {n}" for n in range(12)]


def histories(seed: int, count: int) -> list[dict[str, Any]]:
    """Whoever had n wants n + 1 next, around; some had one thing only."""
    dice = np.random.default_rng(seed)
    starts, lengths = dice.integers(0, 12, count), dice.integers(1, 6, count)
    return [
        {"items": [ITEMS[(a + n) % 12] for n in range(long)]} for a, long in zip(starts, lengths, strict=True)
    ]


def prepare(place: Path, records: list[dict[str, Any]], **task: Any) -> PreparedExamples:
    source = write_jsonl(place / "had.jsonl", records)
    config = DataConfig(source=str(source), cache=str(place / "cache"), validation=0.0)
    return prepare_examples(
        config, make_task(TaskConfig(kind="recommend", **task)), Reader(8, types=False), lambda _: None
    )


def test_answers_are_ranks_among_what_was_not_had(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, histories(0, 60))
    task = make_task(TaskConfig(kind="recommend"))
    assert isinstance(task, Recommend)
    labels = prepared.labels
    encoder = encoder_in(prepared.tokenizer_directory, task, Reader(8, types=False))
    records = [
        *({"items": ["item 3", "item 4", "item 5"]}, {"items": ["item 7"]}, {"items": ["item 1", "new"]}),
        {"items": [f"item {n}" for n in range(11)]},
    ]
    examples = [task.example(Record("x", one)) for one in records]
    asked = [task.example(Record("x", one), labelled=False) for one in records]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=prepared.vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    objective = task.objective(model, labels).eval()
    rows = ListedRows(task.rows([*examples, *asked], labels, encoder))
    objective.answers = []
    with torch.no_grad():
        loss = objective(task.batch([rows[n] for n in range(len(rows))], prepared.pad))
    answers = objective.answers[0].double().numpy()

    expected_loss, targets = 0.0, 0
    for number, (example, opened) in enumerate(zip([*examples, *asked], [0] * 4 + [1] * 4, strict=True)):
        ids = [prepared.pad, *(labels.numbers.get(name, len(labels.names)) for name in example["items"])]
        read = ids[-8:] if opened else ids[:-1][-8:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([read])).logits[0, :, : len(labels.names)].double().numpy()
        if not opened:
            for line, wanted in zip(logits, ids[1:][-8:], strict=True):
                if wanted < len(labels.names):
                    expected_loss += np.log(np.exp(line).sum()) - line[wanted]
                    targets += 1
        left = {
            at: logits[-1, at] for at in range(len(labels.names)) if at not in (ids if opened else ids[:-1])
        }
        best = sorted(left, key=lambda at: -left[at])
        shown = [int(at) for at in answers[number, 1:21] if at >= 0]
        assert shown == best[:20]
        wanted = ids[-1]
        if opened or len(ids) < 3:
            assert answers[number, 0] == 0
        elif wanted == len(labels.names):  # nobody had it before: never right
            assert answers[number, 0] == len(labels.names) + 1
        else:
            assert answers[number, 0] == 1 + best.index(wanted)
    assert float(loss.total) == pytest.approx(expected_loss, rel=1e-5) and int(loss.targets) == targets


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_model_to_which_all_is_alike_finds_nothing(tmp_path: Path, weight: float) -> None:
    """Ties count halfway, also those of a model that computes in 16 bits: of 10 items not had, the fifth and a half."""
    prepared = prepare(tmp_path, histories(0, 60))
    task = make_task(TaskConfig(kind="recommend"))
    encoder = encoder_in(prepared.tokenizer_directory, task, Reader(8, types=False))
    example = task.example(Record("x", {"items": ["item 3", "item 4", "item 5"]}))
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=prepared.vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    torch.nn.init.constant_(model.lm_head.weight, weight)
    objective = task.objective(model, prepared.labels).eval()
    objective.answers = []
    with torch.no_grad():
        objective(task.batch([task.rows([example], prepared.labels, encoder)[0][0]], prepared.pad))
    answers = objective.answers[0].double().numpy()
    assert answers[0, 0] == (5.5 if weight == 0 else 6.5)
    assert task.score(answers, ListedRows([]), [], prepared.labels)["hr@5"] == 0


def test_what_was_had_before_what_is_read_is_neither_shown_nor_ranked(tmp_path: Path) -> None:
    """From the file to the answer: a model that reads four items, of somebody who had eight."""
    had = ITEMS[:8]
    source = write_jsonl(tmp_path / "had.jsonl", [{"items": ITEMS}, {"items": had}])
    task, reader = make_task(TaskConfig(kind="recommend")), Reader(4, types=False)
    config = DataConfig(source=str(source), cache=str(tmp_path / "cache"), validation=0.0)
    prepared = prepare_examples(config, task, reader, lambda _: None)
    labels = prepared.labels
    encoder = encoder_in(prepared.tokenizer_directory, task, reader)
    (asked,) = task.rows([task.example(Record("x", {"items": had}), labelled=False)], labels, encoder)[0]
    objective = task.objective(torch.nn.Identity(), labels).eval()
    objective.answers = []
    batch = task.batch([prepared.parts["train"].table[1], asked], prepared.pad)
    # The earlier an item stands in the list, the likelier.
    order = torch.tensor([labels.numbers[name] for name in ITEMS])
    logits = torch.empty(len(ITEMS)).scatter_(0, order, -torch.arange(12.0)).expand(2, 4, -1)
    objective.answer_with(logits, batch)
    answers = objective.answers[0].double().numpy()
    assert answers[:, 0].tolist() == [1, 0], "the eighth is the likeliest that was not had before it"
    shown = [[one["item"] for one in said["items"]] for said in task.decode(answers, None, [], labels)]
    assert shown == [ITEMS[7:], ITEMS[8:]]


def test_metrics_by_hand() -> None:
    task = make_task(TaskConfig(kind="recommend"))
    answers = np.zeros((5, 41))
    answers[:, 0] = [1, 3, 10, 11, 0]  # the last is not judged
    found = task.score(answers, ListedRows([]), [], Labels((), ()))
    assert found["hr@1"] == 1 / 4 and found["hr@5"] == 2 / 4 and found["hr@10"] == 3 / 4
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(11)) / 4)


def test_a_rule_is_learned_and_what_is_exported_knows_it(tmp_path: Path) -> None:
    """And an item that nobody had, described as another one is, comes near that one."""
    source = write_jsonl(tmp_path / "had.jsonl", histories(1, 400))
    judged = write_jsonl(tmp_path / "judged.jsonl", histories(2, 100))
    sorts = ["red shoes", "green hat", "blue coat", "white shirt", "black belt", "brown bag"]
    described = [{"item": name, "text": f"{sorts[n % 6]} {n}"} for n, name in enumerate(ITEMS)]
    catalogue = write_jsonl(
        tmp_path / "items.jsonl", [*described, {"item": "unseen", "text": "red shoes 0 new"}]
    )
    words = [
        *("name=shop", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "model=40K"),
        f"task={json.dumps({'kind': 'recommend', 'catalogue': str(catalogue)})}",
        *(f"data.source={source}", f"data.validation_source={judged}", "data.sequence=8", "replicas=2"),
        *("train.steps=150", "train.batch=32", "train.learning_rate=4e-3", "train.precision=fp32"),
    ]
    report = api.train(load_config(None, words), console=False)
    run = tmp_path / "runs" / "shop"
    assert report["best"]["metrics"]["hr@1"] > 0.95
    said = api.predict(run, ["item 3|item 4", {"items": ["item 10", "item 11"]}])
    assert [one["items"][0]["item"] for one in said] == ["item 5", "item 0"]
    assert not {"item 3", "item 4"} & {one["item"] for one in said[0]["items"]}
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "export")
    plain: Any = AutoModelForCausalLM.from_pretrained(run / "export")
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("item 3\titem 4")["input_ids"]]])
    with torch.no_grad():
        assert tokenizer.decode(plain(ids).logits[0, -1, :13].argmax()) == "item 5"
        table = torch.nn.functional.normalize(plain.get_input_embeddings().weight, dim=1)
    numbers = tokenizer.get_vocab()
    near = table[: len(ITEMS) + 1] @ table[numbers["unseen"]]
    near[numbers["unseen"]] = -1
    assert int(near.argmax()) in (numbers["item 0"], numbers["item 6"])


def test_repeats_are_kept_and_may_be_chosen_where_they_are_wanted() -> None:
    task = make_task(TaskConfig(kind="recommend", repeats=True))
    assert task.example(Record("x", {"items": "a|b|a"}))["items"] == ["a", "b", "a"]
    once = make_task(TaskConfig(kind="recommend"))
    assert once.example(Record("x", {"items": "a|b|a"}))["items"] == ["a", "b"]
    batch = {
        "input_ids": torch.tensor([[5, 0, 1]]), "labels": torch.tensor([[0, 1, 1]]), "last": torch.tensor([2]),
        "earlier": torch.empty(1, 0, dtype=torch.int64),
    }  # fmt: skip
    logits = torch.tensor([1.0, 4.0, 3.0, 2.0]).expand(1, 3, 4)
    shown = []
    for repeats in (True, False):
        objective = NextItem(torch.nn.Identity(), 4, repeats)
        objective.answers = []
        objective.answer_with(logits, batch)
        shown.append([int(at) for at in objective.answers[0][0, :5]])
    assert shown[0] == [1, 1, 2, 3, 0], "the item that was had is the likeliest, and the right one"
    assert shown[1][1:] == [2, 3, -1, -1], "of those that were had none is shown"


def test_smoothing_spreads_a_share_over_all_items() -> None:
    logits, labels = torch.randn(1, 2, 4), torch.tensor([[3, -100]])
    objective = NextItem(torch.nn.Identity(), 4, False, RegulariseConfig(label_smoothing=0.2)).train()
    told = logits[0, 0].log_softmax(0)
    expected = -(0.8 * told[3] + 0.2 * told.mean())
    torch.testing.assert_close(objective.loss(logits, {"labels": labels}).total, expected)
    torch.testing.assert_close(objective.eval().loss(logits, {"labels": labels}).total, -told[3])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"items": 3}, "'items' is int, not a list of items"),
        ({"items": []}, "'items' is empty"),
        ({"items": [1.5]}, "the item 1.5 has no usable name"),
        ({"items": ["a\tb"]}, "no usable name"),
        ({"things": ["a"]}, "no field 'items'"),
    ],
)
def test_a_history_that_cannot_be_is_refused_by_its_place(record: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        make_task(TaskConfig(kind="recommend")).example(Record("f:1", record))
    assert "f:1" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"item": "a"}], "does not describe an item"),
        ([{"item": "a", "text": "x y"}, {"item": "a", "text": "z"}], "describes the item 'a' again"),
        ([{"item": "a", "text": "!"}], "holds no words"),
    ],
)
def test_a_catalogue_that_cannot_be_is_refused(tmp_path: Path, lines: list[Any], words: str) -> None:
    catalogue = write_jsonl(tmp_path / "items.jsonl", lines)
    with pytest.raises(DataError, match=words):
        prepare(tmp_path, histories(0, 20), catalogue=str(catalogue))
