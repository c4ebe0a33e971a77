"""Embeddings: the loss against NumPy, groups that any number of workers see alike, and the program they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from encoders import WORDS, write_encoder, write_jsonl
from tutti import api
from tutti.config import load_config
from tutti.config.problems import ConfigError
from tutti.config.task import DistilConfig, TaskConfig
from tutti.core import DataError
from tutti.data.labelled import ListedRows, Reader, encoder_in
from tutti.tasks import Labels, Record, make_task
from tutti.tasks.teachers import Teachers

NOTHING = Labels((), ())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and texts of two words each; what a query's words mean stands in its text."""
    place = tmp_path_factory.mktemp("embed")
    write_encoder(place / "bert")
    half = len(WORDS) // 2
    meaning = dict(zip(WORDS[:half], WORDS[half:], strict=False))
    dice = np.random.default_rng(0)
    chosen = [dice.choice(WORDS[:half], 2, replace=False) for _ in range(260)]
    lines = [{"query": f"{a} {b}", "text": f"{meaning[a]} {meaning[b]}"} for a, b in chosen]
    write_jsonl(place / "train.jsonl", lines[:200])
    write_jsonl(place / "aside.jsonl", lines[200:])
    return place


def words_of(place: Path, name: str, *more: str) -> list[str]:
    return [
        *(
            f"name={name}",
            f"runs={place / 'runs'}",
            f"data.cache={place / 'cache'}",
            f"model={place / 'bert'}",
        ),
        *("task={kind: embed, together: 8}", f"data.source={place / 'train.jsonl'}", "data.sequence=16"),
        *(f"data.validation_source={place / 'aside.jsonl'}", "train.precision=fp32", "train.batch=4"),
        *("train.learning_rate=2e-3", "sync.shares=even", "model.dropout=0.0", *more),
    ]


def train(place: Path, name: str, *more: str) -> dict[str, Any]:
    return api.train(load_config(None, words_of(place, name, *more)), console=False)


def test_the_loss_is_the_equation(place: Path) -> None:
    """Two groups of three pairs, of which two have the same text and one is not there."""
    task = make_task(TaskConfig(kind="embed", together=3))
    encoder = encoder_in(place / "bert", task, Reader(16, types=False))
    pairs = [("my card", "lost"), ("why late", "fee"), ("how", "lost"), ("a bank", "rate"), ("open", "close")]
    examples = [task.example(Record("x", {"query": q, "text": t})) for q, t in pairs]
    rows = [row for (row,) in task.rows(examples, NOTHING, encoder)]
    batch = task.batch([*rows, task.blank(rows[0])], encoder.pad)
    model = AutoModel.from_pretrained(place / "bert").eval()
    objective = task.objective(model, NOTHING).eval()
    objective.answers = []
    with torch.no_grad():
        found = objective(batch)
    vectors = {}
    for text in {text for pair in pairs for text in pair}:
        ids = torch.tensor([encoder.tokenizer.encode(text).ids])
        with torch.no_grad():
            mean = model(ids).last_hidden_state[0].mean(0).double().numpy()
        vectors[text] = mean / np.linalg.norm(mean)
    expected = 0.0
    for group in (pairs[:3], pairs[3:]):
        for query, text in group:
            rivals = [t for _, t in group if t != text]
            own = vectors[query] @ vectors[text] / 0.05
            expected -= (
                own / 2
                - np.log(np.exp([own, *(vectors[query] @ vectors[t] / 0.05 for t in rivals)]).sum()) / 2
            )
            rivals = [q for q, t in group if t != text]
            expected -= (
                own / 2
                - np.log(np.exp([own, *(vectors[q] @ vectors[text] / 0.05 for q in rivals)]).sum()) / 2
            )
    assert int(found.targets) == 5
    assert float(found.total) == pytest.approx(expected, rel=1e-5)
    assert objective.answers[0].shape == (2, 3 * 64)


def test_what_is_alike_is_not_rounded_where_the_model_computes_in_16_bits(place: Path) -> None:
    """The loss of the very vectors that it found; a fresh model finds all texts nearly alike."""
    task = make_task(TaskConfig(kind="embed", together=4))
    encoder = encoder_in(place / "bert", task, Reader(16, types=False))
    pairs = [("my card", "lost"), ("why late", "fee"), ("how", "money"), ("a bank", "rate")]
    examples = [task.example(Record("x", {"query": q, "text": t})) for q, t in pairs]
    objective = task.objective(AutoModel.from_pretrained(place / "bert"), NOTHING).eval()
    objective.answers = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = objective(task.batch([row for (row,) in task.rows(examples, NOTHING, encoder)], encoder.pad))
    queries, texts = objective.answers[0].double().view(4, 2, 32).unbind(1)
    alike, own = queries @ texts.T / 0.05, torch.arange(4)
    both = [torch.nn.functional.cross_entropy(table, own, reduction="sum") for table in (alike, alike.T)]
    assert float(found.total) == pytest.approx(float(sum(both)) / 2, rel=1e-5)


def test_retrieval_by_hand() -> None:
    """Three queries, two of which have the same text; the third's is the second most alike."""
    task = make_task(TaskConfig(kind="embed"))
    rows = ListedRows([[{"same": [7]}], [{"same": [7]}], [{"same": [9]}]])
    right, up = [1.0, 0.0], [0.0, 1.0]
    answers = np.array([[*right, *right], [*right, *right], [0.8, 0.6, *up]])
    assert task.score(answers, rows, [], NOTHING) == pytest.approx(
        {"mrr": (1 + 1 + 1 / 2) / 3, "recall@1": 2 / 3, "recall@10": 1.0}
    )


@pytest.mark.parametrize("number", [0.5, float("nan")])
def test_a_model_to_which_all_is_alike_finds_nothing(number: float) -> None:
    """Ties count halfway: of 21 texts each is the eleventh."""
    task = make_task(TaskConfig(kind="embed"))
    rows = ListedRows([[{"same": [at]}] for at in range(21)])
    found = task.score(np.full((21, 4), number), rows, [], NOTHING)
    assert found == pytest.approx({"mrr": 1 / 11, "recall@1": 0.0, "recall@10": 0.0})


def test_it_learns_and_others_get_the_same_vectors(place: Path) -> None:
    from sentence_transformers import SentenceTransformer

    before = train(place, "begun", "train.steps=1", "train.learning_rate=1e-6", "replicas=1")
    report = train(place, "learned", "train.steps=150", "replicas=2")
    assert before["best"]["metrics"]["mrr"] < 0.4 < 0.8 < report["best"]["metrics"]["mrr"]
    run = place / "runs" / "learned"
    assert api.evaluate(run)["mrr"] == pytest.approx(report["best"]["metrics"]["mrr"], abs=1e-6)
    texts = ["my card lost", "a bank", "transfer"]
    said = np.array([one["embedding"] for one in api.predict(run, texts)])
    theirs = SentenceTransformer(str(run / "export"), device="cpu").encode(texts)
    np.testing.assert_allclose(said, theirs, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(place: Path) -> None:
    """Groups are samples: one worker, one with small micro-batches, and two have the same losses."""
    reports = [
        train(place, name, "train.steps=6", *more)
        for name, more in {
            "one": ["replicas=1"],
            "small": ["replicas=1", "train.micro_batch=1"],
            "two": ["replicas=2", "sync.membership=fixed"],
        }.items()
    ]
    losses = [report["validation_loss"] for report in reports]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_what_cannot_be_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match="no field 'query'"):
        make_task(TaskConfig(kind="embed")).example(Record("f:1", {"text": "x"}))
    with pytest.raises(ConfigError, match=r"is not for task\.kind embed"):
        load_config(None, words_of(place, "x", "regularise.r_drop=1.0"))
    with pytest.raises(ConfigError, match="together belongs to kind embed"):
        load_config(None, ["task={kind: tag, together: 4}"])


@pytest.mark.parametrize("reverse", [False, True])
def test_teachers_say_which_texts_are_alike(place: Path, reverse: bool) -> None:
    """The equation in NumPy, over both directions; what is not there, and who has the same text, does not count."""
    task = make_task(TaskConfig(kind="embed", together=3))
    encoder = encoder_in(place / "bert", task, Reader(16, types=False))
    pairs = [("my card", "lost"), ("why late", "fee"), ("how", "lost"), ("a bank", "rate"), ("open", "close")]
    examples = [task.example(Record("x", {"query": q, "text": t})) for q, t in pairs]
    rows = [row for (row,) in task.rows(examples, NOTHING, encoder)]
    batch = task.batch([*rows, task.blank(rows[0])], encoder.pad)

    def drawn(seed: int) -> Any:
        torch.manual_seed(seed)
        model = AutoModel.from_pretrained(place / "bert")
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return task.objective(model.eval(), NOTHING).eval()

    config = DistilConfig(teacher="x", weight=0.3, temperature=2.5, reverse=reverse)
    learner, teachers = drawn(0), [drawn(1), drawn(2)]
    plain = learner(batch)
    learner.teachers = Teachers(teachers, config)
    learner.training = True  # dropout stays off
    found = learner(batch)

    def tables(objective: Any) -> list[np.ndarray]:
        """Of every row: log-probabilities of those that it is told apart from and itself, softened."""
        with torch.no_grad():
            q, t = objective._vectors(batch).double().numpy().reshape(2, 2, 3, -1)
        allowed = [{0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}, {0: [0, 1], 1: [0, 1]}]
        told = []
        for group, rivals in enumerate(allowed):
            for own, others in rivals.items():
                for one, many in ((q, t), (t, q)):
                    said = many[group][others] @ one[group][own] / 0.05 / 2.5
                    told.append(said - np.log(np.exp(said).sum()))
        return told

    own, theirs = tables(learner), [tables(one) for one in teachers]
    apart = 0.0
    for number, mine in enumerate(own):
        mean = np.log(np.mean([np.exp(one[number]) for one in theirs], axis=0))
        first, second = (mine, mean) if reverse else (mean, mine)
        apart += (np.exp(first) * (first - second)).sum() / 2
    expected = 0.3 * 2.5**2 * apart + 0.7 * float(plain.total)
    assert float(found.total) == pytest.approx(expected, rel=1e-4)
    assert learner.added() == pytest.approx(expected - float(plain.total), rel=1e-4)


@pytest.mark.slow
def test_smaller_ones_give_nearly_the_same_vectors(place: Path) -> None:
    train(place, "whole", "train.steps=100", "replicas=1")
    run = place / "runs" / "whole"
    texts = ["my card lost", "a bank", "transfer"]
    before = np.array([one["embedding"] for one in api.predict(run, texts)])
    for recipe in ("int8-mixed", "onnx+int8"):
        api.compress(run, target="<20% worse", recipes=[recipe], destination=place / recipe)
        after = np.array([one["embedding"] for one in api.predict(place / recipe, texts)])
        assert ((before * after).sum(1) > 0.98).all()
