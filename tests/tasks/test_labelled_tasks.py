"""Tasks beside plain transformers: rows, losses, answers and metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForSequenceClassification,
)

from encoders import write_encoder
from tutti.config.task import TaskConfig
from tutti.core import DataError
from tutti.core.record import Asked
from tutti.data.labelled import ListedRows
from tutti.models import find_blocks
from tutti.tasks import Labels, Record, RowEncoder, make_task
from tutti.tasks.dense import install
from tutti.tasks.entities import entities
from tutti.tasks.packing import ATTENTION

_ANSWER = {"text": "lost", "answer_start": 11}
TEXTS = [
    "my card is lost",
    "exchange",
    "where is the money that did not arrive in paris please help me",
    "a fee?",
]
LABELS = Labels(("exchange", "fee", "lost"), (1, 2, 3))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(directory: Path) -> RowEncoder:
    return RowEncoder(Tokenizer.from_file(str(directory / "tokenizer.json")), 16, 0, types=True)


def examples_of(
    kind: str, records: list[dict[str, object]], **settings: object
) -> tuple[object, list[dict[str, object]]]:
    task = make_task(TaskConfig(kind=kind, **settings))
    return task, [task.example(Record(f"f:{n}", record)) for n, record in enumerate(records, 1)]


def test_classification_is_what_transformers_computes(directory: Path, encoder: RowEncoder) -> None:
    task, examples = examples_of("classify", [{"text": t, "label": "fee"} for t in TEXTS])
    rows = [row for some in task.rows(examples, LABELS, encoder) for row in some]
    batch = task.batch(rows, 0)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3).eval()
    theirs = AutoTokenizer.from_pretrained(directory)(
        TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"])
    expected = model(**theirs, labels=torch.ones(4, dtype=torch.int64))
    objective = task.objective(model, LABELS).eval()
    objective.answers = []
    total, targets = objective(batch)
    torch.testing.assert_close(total / targets, expected.loss)
    torch.testing.assert_close(objective.answers[0], expected.logits)
    assert int(targets) == objective.count_targets(batch) == 4


def test_what_is_blank_counts_for_nothing(directory: Path, encoder: RowEncoder) -> None:
    for settings in ({}, {"multiple": True}):
        task, examples = examples_of("classify", [{"text": t, "label": "fee"} for t in TEXTS[:2]], **settings)
        rows = [row for some in task.rows(examples, LABELS, encoder) for row in some]
        model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3).eval()
        objective = task.objective(model, LABELS).eval()
        alone = objective(task.batch(rows, 0))
        filled = objective(task.batch([*rows, task.blank(rows[0])], 0))
        torch.testing.assert_close(filled.total, alone.total)
        assert int(filled.targets) == int(alone.targets) == 2
        assert int(objective(task.batch([task.blank(rows[0])], 0)).targets) == 0


def test_rare_labels_weigh_more_where_that_is_asked_for(directory: Path, encoder: RowEncoder) -> None:
    task, examples = examples_of(
        "classify",
        [
            {"text": t, "label": name}
            for t, name in zip(TEXTS, ("fee", "lost", "lost", "exchange"), strict=True)
        ],
        balance=True,
    )
    batch = task.batch([row for some in task.rows(examples, LABELS, encoder) for row in some], 0)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3).eval()
    objective = task.objective(model, LABELS).eval()
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    weights = torch.tensor([6 / 3 / 1, 6 / 3 / 2, 6 / 3 / 3])  # n ÷ (labels · n of it)
    each = F.cross_entropy(logits, torch.tensor([1, 2, 2, 0]), reduction="none")
    torch.testing.assert_close(objective(batch).total, (each * weights[[1, 2, 2, 0]]).sum())


def test_several_labels_are_what_transformers_computes(directory: Path, encoder: RowEncoder) -> None:
    given = [["fee"], [], ["exchange", "lost"], ["lost"]]
    task, examples = examples_of(
        "classify", [{"text": t, "label": some} for t, some in zip(TEXTS, given, strict=True)], multiple=True
    )
    batch = task.batch([row for some in task.rows(examples, LABELS, encoder) for row in some], 0)
    model = BertForSequenceClassification.from_pretrained(
        directory, num_labels=3, problem_type="multi_label_classification"
    ).eval()
    true = torch.tensor([[float(name in some) for name in LABELS.names] for some in given])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "weight")}
    expected = model(**inputs, labels=true)
    total, targets = task.objective(model, LABELS).eval()(batch)
    torch.testing.assert_close(total / targets, expected.loss)


def test_scores_of_classification() -> None:
    task, examples = examples_of(
        "classify", [{"text": "x", "label": n} for n in ("fee", "fee", "lost", "exchange")]
    )
    answers = np.eye(3)[[1, 2, 2, 0]]
    found = task.score(answers, ListedRows([]), examples, LABELS)
    # fee: precision 1, recall 1/2; lost: 1/2 and 1; exchange: both 1
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    said = task.decode(answers, ListedRows([]), examples, LABELS)
    assert [one["label"] for one in said] == ["fee", "lost", "lost", "exchange"]


def test_a_pair_is_one_row_with_two_kinds_of_tokens(directory: Path, encoder: RowEncoder) -> None:
    task, examples = examples_of("classify", [{"text": "my card", "pair": "is lost please", "label": "fee"}])
    (row,) = task.rows(examples, LABELS, encoder)[0]
    theirs = AutoTokenizer.from_pretrained(directory)("my card", "is lost please")
    assert row["input_ids"] == theirs["input_ids"] and row["token_type_ids"] == theirs["token_type_ids"]


# Tags --------------------------------------------------------------------------------------------------------

TAGS = Labels(("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), (9, 2, 1, 1, 1))


def test_words_and_tags_are_aligned_as_transformers_aligns_words(
    directory: Path, encoder: RowEncoder
) -> None:
    words = ["Anna", "visits", "Zzyx-ville", "and", "New", "York", "!"]
    tags = ["B-PER", "O", "B-LOC", "O", "B-LOC", "I-LOC", "O"]
    task, examples = examples_of("tag", [{"tokens": words, "tags": tags}])
    encoder = RowEncoder(encoder.tokenizer, 64, 0, types=True)
    (row,) = task.rows(examples, TAGS, encoder)[0]
    theirs = AutoTokenizer.from_pretrained(directory)(words, is_split_into_words=True)
    assert row["input_ids"] == theirs["input_ids"]
    firsts = {}
    for at, word in enumerate(theirs.word_ids()):
        if word is not None:
            firsts.setdefault(word, at)
    assert row["starts"] == [firsts[word] for word in range(len(words))]
    labels = task.batch([row], 0)["labels"][0]
    assert [int(labels[at]) for at in row["starts"]] == [TAGS.numbers[tag] for tag in tags]
    assert int((labels != -100).sum()) == len(words)


def test_tagging_is_what_transformers_computes(directory: Path, encoder: RowEncoder) -> None:
    task, examples = examples_of(
        "tag",
        [
            {"tokens": ["anna", "visits", "new", "york"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]},
            {"tokens": ["paris", "!"], "tags": ["B-LOC", "O"]},
        ],
    )
    rows = [row for some in task.rows(examples, TAGS, encoder) for row in some]
    batch = task.batch(rows, 0)
    model = AutoModelForTokenClassification.from_pretrained(directory, num_labels=5).eval()
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "starts")}
    expected = model(**inputs, labels=batch["labels"])
    objective = task.objective(model, TAGS).eval()
    objective.answers = []
    total, targets = objective(batch)
    torch.testing.assert_close(total / targets, expected.loss)
    logits = expected.logits.detach().numpy()
    for answer, of_row, row in zip(objective.answers[0], logits, rows, strict=True):
        chances = np.exp(of_row[row["starts"]])
        chances /= chances.sum(1, keepdims=True)
        said = answer.numpy().reshape(-1, 2)[: len(chances)]  # tag and chance of each word
        np.testing.assert_allclose(said, np.stack([chances.argmax(1), chances.max(1)], 1), rtol=1e-5)


def test_spans_become_tags_and_back() -> None:
    text = "Anna Smith visits New York."
    spans = [{"start": 0, "end": 10, "label": "PER"}, {"start": 18, "end": 26, "label": "LOC"}]
    _, (example,) = examples_of("tag", [{"text": text, "spans": spans}])
    assert example["tags"] == ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    found = [
        {key: one[key] for key in ("start", "end", "label")} for one in entities(example, example["tags"])
    ]
    assert found == spans


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["I-LOC", "I-LOC", "O"], [(0, 3, "LOC")]),  # begins without B
        (["B-LOC", "B-LOC", "O"], [(0, 1, "LOC"), (2, 3, "LOC")]),
        (["B-LOC", "I-PER", "O"], [(0, 1, "LOC"), (2, 3, "PER")]),
        (["O", "O", "B-PER"], [(4, 5, "PER")]),
    ],
)
def test_entities_are_read_as_conlleval_reads_them(
    tags: list[str], expected: list[tuple[int, int, str]]
) -> None:
    example = {"text": "a b c", "words": [[0, 1], [2, 3], [4, 5]]}
    assert [(e["start"], e["end"], e["label"]) for e in entities(example, tags)] == expected


def _with_chances(tags: np.ndarray, chances: np.ndarray | float) -> np.ndarray:
    """Answers: of each word its tag and its chance, in turns."""
    return np.stack([tags, np.broadcast_to(chances, tags.shape)], 2).reshape(len(tags), -1)


def test_an_entity_is_as_sure_as_its_words_are_on_average() -> None:
    task, examples = examples_of("tag", [{"tokens": ["Anna", "in", "New", "York"], "tags": ["O"] * 4}])
    rows = ListedRows([[{"starts": [1, 2, 3, 4], "words": [0, 1, 2, 3]}]])
    tags = np.array([[TAGS.numbers[tag] for tag in ("B-PER", "O", "B-LOC", "I-LOC")]], dtype=float)
    answers = _with_chances(tags, np.array([[0.9, 0.99, 0.8, 0.6]]))
    assert task.decode(answers, rows, examples, TAGS)[0]["entities"] == [
        {"label": "PER", "start": 0, "end": 4, "text": "Anna", "score": 0.9},
        {"label": "LOC", "start": 8, "end": 16, "text": "New York", "score": 0.7},
    ]


def test_scores_of_tags() -> None:
    task, examples = examples_of(
        "tag",
        [
            {"tokens": list("abcd"), "tags": ["B-PER", "O", "B-LOC", "I-LOC"]},
            {"tokens": list("ab"), "tags": ["B-LOC", "O"]},
        ],
    )
    rows = ListedRows(
        [[{"starts": [1, 2, 3, 4], "words": [0, 1, 2, 3]}], [{"starts": [1, 2], "words": [0, 1]}]]
    )
    # Says: PER right, LOC of the first too short; LOC of the second right, and one that is none.
    answers = np.array([[3, 0, 1, 0], [1, 1, 0, 0]], dtype=float)
    found = task.score(_with_chances(answers, 0.9), rows, examples, TAGS)
    assert found["precision"] == pytest.approx(2 / 4) and found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert found["word_accuracy"] == pytest.approx(4 / 6)


def test_scores_of_tags_are_those_of_sets_of_entities() -> None:
    """Precision and recall by counting what is in both, on random tags, neighbours included."""
    dice = np.random.default_rng(0)
    names = [TAGS.names[at] for at in dice.integers(0, 5, 400)]
    task, examples = examples_of(
        "tag", [{"tokens": ["x"] * 20, "tags": names[at : at + 20]} for at in range(0, 400, 20)]
    )
    answers = np.array([[TAGS.numbers[tag] for tag in e["tags"]] for e in examples], dtype=float)
    change = dice.random(answers.shape) < 0.3
    answers[change] = dice.integers(0, 5, int(change.sum()))
    rows = ListedRows([[{"starts": range(20), "words": range(20)}] for _ in examples])
    found = task.score(_with_chances(answers, 0.9), rows, examples, TAGS)

    def as_set(tags_of: list[list[str]]) -> set[tuple[int, str, int, int]]:
        return {
            (number, e["label"], e["start"], e["end"])
            for number, (example, tags) in enumerate(zip(examples, tags_of, strict=True))
            for e in entities(example, tags)
        }

    true = as_set([e["tags"] for e in examples])
    said = as_set([[TAGS.names[int(n)] for n in line] for line in answers])
    assert found["precision"] == pytest.approx(len(true & said) / len(said))
    assert found["recall"] == pytest.approx(len(true & said) / len(true))


def test_a_long_text_is_read_in_pieces_and_every_word_once(encoder: RowEncoder) -> None:
    words = [f"word{number}" for number in range(20)]
    task, examples = examples_of("tag", [{"tokens": words, "tags": ["O"] * 20}])
    rows = task.rows(examples, Labels(("O", "B-X", "I-X"), (1, 1, 1)), encoder)[0]
    assert len(rows) > 1 and all(len(row["input_ids"]) <= 16 for row in rows)
    assert [word for row in rows for word in row["words"]] == list(range(20))
    assert [row["cut"] for row in rows] == [[0]] + [[1]] * (len(rows) - 1)


# Padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_without_padding_nothing_changes_but_rounding(tmp_path: Path, kind: str, encoder: RowEncoder) -> None:
    task, examples = examples_of("classify", [{"text": t, "label": "fee"} for t in TEXTS])
    encoder = RowEncoder(encoder.tokenizer, 16, 0, types=kind == "bert")
    batch = task.batch([row for some in task.rows(examples, LABELS, encoder) for row in some], 0)
    found = []
    for dense in (False, True):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            write_encoder(tmp_path, kind), num_labels=3
        ).eval()
        if dense:
            seen: list[tuple[int, ...]] = []
            assert install(model, find_blocks(model), ATTENTION)
            find_blocks(model)[1].register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(inputs[0].shape)
            )
        total = task.objective(model, LABELS)(batch).total
        total.backward()
        found.append([total, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert seen == [(1, int(batch["attention_mask"].sum()), 32)]
    for plain, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "record", "least"),
    [
        ("classify", {"text": "my card", "label": "fee"}, 3),
        ("classify", {"text": "my card", "pair": "is lost", "label": "fee"}, 5),
        ("relate", {"text": "<e1>card</e1> of <e2>anna</e2>", "label": "fee"}, 3),
        ("tag", {"tokens": ["my", "card"], "tags": ["O", "O"]}, 3),
        ("embed", {"query": "my card", "text": "is lost"}, 3),
        ("answer", {"question": "why", "context": "my card is lost", "answers": [_ANSWER]}, 5),
    ],
)
def test_a_row_has_room_for_text_or_is_refused(
    encoder: RowEncoder, kind: str, record: dict[str, object], least: int
) -> None:
    task, examples = examples_of(kind, [record])
    labels = TAGS if kind == "tag" else LABELS
    for length in range(1, least):
        with pytest.raises(DataError, match=rf"a row of {length} tokens .*\n.*data\.sequence to {least} at"):
            task.rows(examples, labels, replace(encoder, length=length))
    for length in range(least, 16):
        (rows,) = task.rows(examples, labels, replace(encoder, length=length))
        most = 2 * length if kind == "embed" else length  # both sides stand behind each other
        assert all(len(row["input_ids"]) <= most for row in rows)


@pytest.mark.parametrize(
    ("kind", "record", "words"),
    [
        ("classify", {"txt": "a", "label": "b"}, "f:1 has no field 'text' (it has txt, label)"),
        ("classify", {"text": "  ", "label": "b"}, "f:1: 'text' is empty"),
        ("classify", {"text": "a", "label": ["b"]}, "the label is ['b'], which is no name"),
        ("classify", {"text": "a"}, "has no field 'label'"),
        ("tag", {"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens but 1 tags"),
        ("tag", {"tokens": ["a"], "tags": ["PER"]}, "the tag of 'a' is 'PER'"),
        (
            "tag",
            {"text": "a b", "spans": [{"start": 0, "end": 9, "label": "X"}]},
            "outside its text of 3 characters",
        ),
        ("tag", {"text": "a  b", "spans": [{"start": 1, "end": 2, "label": "X"}]}, "holds no word"),
        (
            "tag",
            {
                "text": "a b",
                "spans": [{"start": 0, "end": 1, "label": "X"}, {"start": 0, "end": 3, "label": "Y"}],
            },
            "overlaps another",
        ),
    ],
)
def test_a_record_that_cannot_be_is_refused_by_its_place(
    kind: str, record: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        examples_of(kind, [record])
    assert "f:1" in str(caught.value) and words in str(caught.value)


def test_one_label_is_nothing_to_learn() -> None:
    task = make_task(TaskConfig(kind="classify"))
    with pytest.raises(DataError, match="only the label 'a'"):
        task.labels(Counter(a=3))
    with pytest.raises(DataError, match="no training example has an entity"):
        make_task(TaskConfig(kind="tag")).labels(Counter(O=3))


def test_what_is_asked_about_keeps_its_place() -> None:
    """And a record without text is no matter of `data.on_empty`, which is for what is learned."""
    task = make_task(TaskConfig(kind="classify", fields={"text": "said"}))
    asked: list[Asked] = ["my card", {"said": "my card"}, Record("new.jsonl:7", {"said": "my card"})]
    assert task.asked_about(asked) == [{"text": "my card"}] * 3
    empty: list[tuple[Asked, str]] = [
        (" ", "record 4"),
        ({"said": " "}, "record 4"),
        (Record("new.jsonl:8", {"said": " "}), "new.jsonl:8"),
    ]
    for one, place in empty:
        with pytest.raises(DataError) as caught:
            task.asked_about([*asked, one])
        assert caught.value.problem == f"{place}: 'said' is empty"
        assert caught.value.hint == "mend or delete the record"
