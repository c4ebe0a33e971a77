"""Relations between marked entities, and answers that stand in a text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from encoders import write_encoder
from tutti.config import load_config
from tutti.config.task import TaskConfig
from tutti.core import DataError
from tutti.core.errors import ConfigError
from tutti.data.labelled import ListedRows
from tutti.data.tokenizer import train_bpe, train_characters, with_separators
from tutti.models import find_blocks
from tutti.tasks import Labels, Record, RowEncoder, make_task
from tutti.tasks.answer import likeliest
from tutti.tasks.dense import install
from tutti.tasks.packing import ATTENTION

CONTEXT = "Anna works for Acme Corp in Paris. Bob visits London and New York when the bank is closed."


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


def encoder_of(directory: Path, length: int) -> RowEncoder:
    return RowEncoder(Tokenizer.from_file(str(directory / "tokenizer.json")), length, 0, types=True)


def examples_of(
    kind: str, records: list[dict[str, Any]], **settings: Any
) -> tuple[Any, list[dict[str, Any]]]:
    task = make_task(TaskConfig(kind=kind, **settings))
    return task, [task.example(Record(f"f:{n}", record)) for n, record in enumerate(records, 1)]


# Relations ---------------------------------------------------------------------------------------------------

RELATIONS = Labels(
    ("Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Entity-Origin(e1,e2)", "Other"), (1, 1, 1, 1)
)


def test_relations_are_scored_as_semeval_scores_them() -> None:
    """Precision and recall of each relation, direction right, both directions counted together; `Other` left out."""
    true = [
        "Cause-Effect(e1,e2)",
        "Cause-Effect(e2,e1)",
        "Cause-Effect(e1,e2)",
        "Entity-Origin(e1,e2)",
        "Other",
        "Other",
    ]
    said = [
        "Cause-Effect(e1,e2)",
        "Cause-Effect(e1,e2)",
        "Other",
        "Entity-Origin(e1,e2)",
        "Entity-Origin(e1,e2)",
        "Other",
    ]
    text = "<e1>a</e1> and <e2>b</e2>"
    task, examples = examples_of("relate", [{"text": text, "label": label} for label in true], none="Other")
    answers = np.eye(4)[[RELATIONS.numbers[label] for label in said]]
    found = task.score(answers, ListedRows([]), examples, RELATIONS)
    # Cause-Effect: 1 right of 2 claimed, 3 are there: F1 = 2·1/5. Entity-Origin: 1 right of 2 claimed, 1 is there: 2/3.
    assert found["macro_f1"] == pytest.approx((2 / 5 + 2 / 3) / 2)
    assert found["accuracy"] == pytest.approx(3 / 6)


def test_marks_become_signs_that_the_tokenizer_knows(directory: Path) -> None:
    task, examples = examples_of("relate", [{"text": "the <e1>card</e1> of <e2>Anna</e2>.", "label": "x"}])
    (row,) = task.rows(examples, Labels(("x", "y"), (1, 1)), encoder_of(directory, 32))[0]
    theirs = AutoTokenizer.from_pretrained(directory)("the $ card $ of # Anna #.")
    assert row["input_ids"] == theirs["input_ids"]


def test_of_a_long_text_the_entities_stay(directory: Path) -> None:
    far = "why when where how " * 20
    text = f"{far}<e1>card</e1> {far}<e2>anna</e2> {far}"
    task, examples = examples_of("relate", [{"text": text, "label": "x"}])
    encoder = encoder_of(directory, 24)
    (row,) = task.rows(examples, Labels(("x", "y"), (1, 1)), encoder)[0]
    words = encoder.tokenizer.decode(row["input_ids"])
    assert len(row["input_ids"]) <= 24 and row["cut"] == [1]
    assert "card" in words and "anna" in words and words.index("card") < words.index("anna")


@pytest.mark.parametrize(
    "text", ["no mark", "<e1>one</e1>", "<e1>a</e1> <e1>b</e1>", "<e1>a</e1> <e2>b</e2> <e2>c</e2>"]
)
def test_two_entities_have_to_be_marked(text: str) -> None:
    with pytest.raises(DataError, match=r"f:1 marks .* not two entities"):
        examples_of("relate", [{"text": text, "label": "x"}])


def test_what_is_no_relation_is_among_the_relations() -> None:
    counted = Counter(RELATIONS.names)
    for none in ("Other", "Entity-Origin", None):
        assert make_task(TaskConfig(kind="relate", none=none)).labels(counted) == RELATIONS
    for none in ("other", "Entity-Origin(e1,e2)"):  # which the score would leave nothing out for
        there_are = r"task\.none names; there are Cause-Effect, Entity-Origin, Other\n"
        with pytest.raises(DataError, match=there_are):
            make_task(TaskConfig(kind="relate", none=none)).labels(counted)


# Answers -----------------------------------------------------------------------------------------------------


def question(answer: str, context: str = CONTEXT) -> dict[str, Any]:
    return {
        "question": "where?",
        "context": context,
        "answers": [{"text": answer, "answer_start": context.index(answer)}],
    }


def test_an_answer_is_found_where_it_stands_whatever_the_pieces(directory: Path) -> None:
    task, examples = examples_of("answer", [question("New York"), question("Acme Corp")])
    for length in (64, 20):
        encoder = encoder_of(directory, length)
        for example, rows in zip(examples, task.rows(examples, Labels((), ()), encoder), strict=True):
            assert len(rows) > 1 or length == 64
            places = [(row, row["places"]) for row in rows if row["places"] != [0, 0]]
            assert places, "some piece has the whole answer"
            for row, (start, end) in places:
                found = example["context"][row["begins"][start] : row["ends"][end]]
                assert found == example["answers"][0]["text"]


@pytest.mark.parametrize("kind", ["pretrained", "bpe", "characters"])
def test_space_around_an_answer_is_no_part_of_it(directory: Path, kind: str) -> None:
    """Neither of one that is given, nor of one that is said by tokens with the space before them."""
    context = "she did go to  new york \n in may"
    marked = [
        {
            "question": "where did she go",
            "context": context,
            "answers": [{"text": text, "answer_start": start}],
        }
        for text, start in (("new york", 15), ("  new york", 13), ("new york \n ", 15))
    ]
    task, examples = examples_of("answer", marked)
    assert [example["answers"] for example in examples] == [[{"text": "new york", "start": 15}]] * 3
    encoder = encoder_of(directory, 64)
    if kind != "pretrained":
        texts = [context] * 4
        own = train_characters(texts) if kind == "characters" else train_bpe(texts, 300, exactly=False)
        encoder = RowEncoder(with_separators(own), 64, 0, types=False)
    rows = [row for some in task.rows(examples, Labels((), ()), encoder) for row in some]
    first, last = rows[0]["places"]
    assert [row["places"] for row in rows] == [[first, last]] * 3 and first > 0
    more = min(place for place in range(first + 1) if rows[0]["ends"][place] > 13)  # with what space there is
    answers = np.array([[first, last, 1.0, 0.0], [more, last, 1.0, 0.0], [more, last + 1, 1.0, 0.0]])
    said = task.decode(answers, ListedRows([[row] for row in rows]), examples, Labels((), ()))
    for one in said[:2]:
        assert one["answer"] == "new york" and one["start"] == 15
    assert said[2]["answer"].startswith("new york") and said[2]["answer"] == said[2]["answer"].strip()


@pytest.mark.parametrize("words", [5, 12, 21, 60])
def test_a_question_of_any_length_leaves_room_for_its_text(directory: Path, words: int) -> None:
    long = question("New York") | {"question": " ".join(["where"] * words)}
    task, examples = examples_of("answer", [long])
    encoder = encoder_of(directory, 32)
    asked = len(encoder.tokenizer.encode(long["question"], add_special_tokens=False).ids)
    (rows,) = task.rows(examples, Labels((), ()), encoder)
    assert all(len(row["input_ids"]) <= 32 for row in rows)
    assert rows[0]["cut"] == [int(asked > 12)]
    seen = {begin for row in rows for begin in row["begins"] if begin >= 0}
    assert min(seen) == 0 and max(seen) >= len(CONTEXT) - 12, "all of the text is read"


def test_answering_is_what_transformers_computes(directory: Path) -> None:
    task, examples = examples_of(
        "answer", [question("Paris"), question("the bank", "when the bank is closed")]
    )
    rows = [row for some in task.rows(examples, Labels((), ()), encoder_of(directory, 64)) for row in some]
    batch = task.batch(rows, 0)
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    each = [
        model(
            **{
                name: tensor[at : at + 1, : int(batch["attention_mask"][at].sum())]
                for name, tensor in inputs.items()
            },
            start_positions=batch["places"][at : at + 1, 0],
            end_positions=batch["places"][at : at + 1, 1],
        ).loss
        for at in range(2)
    ]
    objective = task.objective(model, Labels((), ())).eval()
    total, targets = objective(batch)
    assert int(targets) == 2
    torch.testing.assert_close(total, sum(each))
    assert install(model, find_blocks(model), ATTENTION)
    torch.testing.assert_close(objective(batch).total, total, rtol=1e-4, atol=1e-5)


def test_the_likeliest_stretch_by_trying_all() -> None:
    torch.manual_seed(0)
    starts, ends = torch.randn(3, 40), torch.randn(3, 40)
    inside = torch.zeros(3, 40, dtype=torch.bool)
    inside[:, 5:38] = True
    found = likeliest(starts, ends, inside)
    for row in range(3):
        scores = {
            (a, b): float(starts[row, a] + ends[row, b])
            for a in range(5, 38)
            for b in range(a, min(38, a + 30))
        }
        best = max(scores, key=lambda pair: scores[pair])
        assert found[row, :2].tolist() == list(best)
        assert float(found[row, 2]) == pytest.approx(scores[best])
        assert float(found[row, 3]) == pytest.approx(float(starts[row, 0] + ends[row, 0]))


def test_answers_are_scored_as_squad_scores_them() -> None:
    contexts = ["the red card of Anna", "a b c d", "nothing here"]
    records = [
        {"question": "?", "context": contexts[0], "answers": [{"text": "red card", "answer_start": 4}]},
        {"question": "?", "context": contexts[1], "answers": [{"text": "b c", "answer_start": 2}]},
        {"question": "?", "context": contexts[2], "answers": []},
    ]
    task, examples = examples_of("answer", records, unanswerable=True)

    def row(context: str) -> dict[str, list[int]]:
        words = context.split()
        begins = [context.index(word) for word in words]
        return {
            "begins": [-1, *begins],
            "ends": [-1, *(b + len(w) for b, w in zip(begins, words, strict=True))],
        }

    rows = ListedRows([[row(context)] for context in contexts])
    # "the red card": exact, for articles don't count; "c d": one word of two; none.
    answers = np.array([[1, 3, 5.0, 0.0], [3, 4, 5.0, 0.0], [1, 1, 0.0, 5.0]])
    said = task.decode(answers, rows, examples, Labels((), ()))
    assert [one["answer"] for one in said] == ["the red card", "c d", ""]
    found = task.score(answers, rows, examples, Labels((), ()))
    assert found == pytest.approx({"exact": 2 / 3, "f1": (1 + 0.5 + 1) / 3})


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("Paris", "the answers are no list"),
        ([{"text": "Paris"}], "is no answer"),
        ({"text": "Paris", "answer_start": 27}, r"no two lists of one length \('Paris' and 27\)"),
        ({"text": ["Paris", "London"], "answer_start": [27]}, "no two lists of one length"),
        ({"text": ["Paris"]}, "no two lists of one length"),
        ([{"text": " ", "answer_start": 4}], "is no answer"),
        ([{"text": "Paris", "answer_start": 3}], "does not stand in its context at 3"),
        ([{"text": "closed", "answer_start": -7}], "does not stand in its context at -7"),
        ([], r"f:1 has no answer[^→]*→ set task\.unanswerable: true"),
        ({"text": [], "answer_start": []}, "has no answer"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_by_its_place(answers: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        examples_of("answer", [{"question": "?", "context": CONTEXT, "answers": answers}])
    assert "f:1" in str(caught.value)


def test_questions_are_asked_without_answers_and_learned_without_where_that_is_said() -> None:
    unanswered = {"question": "?", "context": CONTEXT, "answers": []}
    _, (learned,) = examples_of("answer", [unanswered], unanswerable=True)
    assert learned["answers"] == []
    (asked,) = make_task(TaskConfig(kind="answer")).asked_about([unanswered])
    assert "answers" not in asked


def test_answers_may_come_as_two_lists() -> None:
    both = {"text": ["Paris", "New York"], "answer_start": [28, CONTEXT.index("New York")]}
    _, (example,) = examples_of("answer", [{"question": "where?", "context": CONTEXT, "answers": both}])
    assert [one["text"] for one in example["answers"]] == ["Paris", "New York"]


# Settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task={kind: tag, multiple: true}"], "multiple belongs to kind classify"),
        (["task={kind: classify, fields: {words: x}}"], "the fields of classify are: text, pair, label"),
        (["task=answer", "regularise.label_smoothing=0.1"], "label_smoothing"),
        (["task=tag", "regularise.word_drop=0.1"], "word_drop"),
        (["task=classify", "regularise={r_drop: 1.0, adversarial: 0.5}"], "r_drop and adversarial"),
        (["tune=lora"], "tune.method: lora keeps what a model knows, and a new one knows nothing"),
        (["regularise.r_drop=1.0"], "regularise is for models that are asked"),
        (["task=clasify"], "did you mean"),
        (["train.layer_decay=0.9", "train.optimizer=muon"], "layer_decay is for optimizer adamw"),
        (["train.layer_decay=0.9", "layout.pipeline=2"], "layer_decay counts the blocks of a whole model"),
        (["train.betas=[0.8, 0.9]", "train.optimizer=adafactor"], "adafactor has no momentum"),
        (["train.head_rate=3"], "train.head_rate is for heads that learn with the rest"),
        (["train.head_rate=3", "task={kind: classify, contrast: true}"], "not with task.contrast"),
        (["train.head_rate=3", "task=classify", "tune=prompt", "model=x"], "or tune.method: prompt"),
    ],
)
def test_settings_that_do_not_go_together(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert said in str(caught.value)
