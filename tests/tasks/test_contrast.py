"""Learning by contrast: the loss against NumPy, groups in which labels repeat, and the head against scikit-learn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
)

from encoders import write_encoder
from tutti.config import load_config
from tutti.config.problems import ConfigError
from tutti.config.task import TaskConfig
from tutti.core import DataError, ModelError
from tutti.data.labelled import ListedRows, Reader, encoder_in
from tutti.tasks import ByContrast, Labels, Record, make_task
from tutti.tasks.contrast import SupervisedContrast, fit_head, last_layer, read_by_head

LABELS = Labels(("bank", "card", "fee"), (3, 3, 2))
TEXTS = [
    *(("my card", "card"), ("a bank", "bank"), ("stolen card", "card"), ("pay the fee", "fee")),
    *(("open account", "bank"), ("lost", "card"), ("close account", "bank")),
]


def test_the_loss_is_the_equation(tmp_path: Path) -> None:
    """Two groups of four; in the first nobody is like the fee, in the second the card is alone and one is not there."""
    task = ByContrast(TaskConfig(kind="classify", contrast=True, together=4), 100)
    encoder = encoder_in(write_encoder(tmp_path / "bert"), task, Reader(16, types=True))
    examples = [task.example(Record("x", {"text": text, "label": label})) for text, label in TEXTS]
    rows = [row for (row,) in task.rows(examples, LABELS, encoder)]
    batch = task.batch([*rows, task.blank(rows[0])], encoder.pad)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=3).eval()
    for parameter in model.parameters():
        parameter.data *= 15 if parameter.ndim == 2 else 1  # else a fresh model finds all texts alike
    objective = task.objective(model, LABELS).eval()
    objective.answers = []
    found = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective(batch).total.dtype == torch.float32
    vectors = []
    for text, _ in TEXTS:
        with torch.no_grad():
            ids = torch.tensor([encoder.tokenizer.encode(text).ids])
            vectors.append(model.bert(ids).pooler_output[0].double().numpy())
    z = [vector / np.linalg.norm(vector) for vector in vectors]
    assert min(one @ other for one in z for other in z) < 0.9
    expected, targets = 0.0, 0
    for group in (range(4), range(4, 7)):
        for i in group:
            others = [a for a in group if a != i]
            alike = [p for p in others if TEXTS[p][1] == TEXTS[i][1]]
            below = sum(np.exp(z[i] @ z[a] / 0.1) for a in others)
            for p in alike:
                expected -= np.log(np.exp(z[i] @ z[p] / 0.1) / below) / len(alike)
            targets += bool(alike)
    assert int(found.targets) == objective.count_targets(batch) == targets == 4
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-5)
    answered = objective.answers[0].view(8, -1)[:7].numpy()
    np.testing.assert_allclose(answered, vectors, atol=2e-5)
    found.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    assert "bert.pooler.dense.weight" in gradients and "classifier.weight" not in gradients


def test_a_group_of_nobody_gives_nothing(tmp_path: Path) -> None:
    task = ByContrast(TaskConfig(kind="classify", contrast=True, together=2), 100)
    model = AutoModelForSequenceClassification.from_pretrained(write_encoder(tmp_path / "bert"), num_labels=3)
    found = task.objective(model, LABELS)(task.batch([{"input_ids": [2, 7, 3]}] * 2, 0))
    found.total.backward()
    assert float(found.total.detach()) == 0 and int(found.targets) == 0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def test_labels_repeat_in_a_group() -> None:
    """Every row once; whoever is of a label with an even number stands beside one of its kind."""
    task = ByContrast(TaskConfig(kind="classify", contrast=True), 17)
    label = [0] * 6 + [1] * 4 + [2] * 5 + [3] * 2
    rows = ListedRows([[{"labels": [number]}] for number in label])
    assert task.group == 17  # no more than there are
    orders = [task.order(rows, np.random.default_rng(seed)) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    for order in orders:
        assert sorted(order) == list(range(len(label)))
        there = [label[row] for row in order]
        places = [at for at, one in enumerate(there) if one != 2]
        at = 0
        while at < len(places):  # those of the odd label may stand between pairs, not inside one
            first, second = places[at], places[at + 1]
            assert second == first + 1 and there[first] == there[second]
            at += 2
    few = ListedRows([[{"labels": [number]}] for number in (0, 1, 1)])
    assert sorted(task.order(few, np.random.default_rng(0))) == [0, 1, 2]


@pytest.mark.parametrize(("count", "balance"), [(2, False), (3, False), (3, True)])
def test_the_head_is_scikit_learns(count: int, balance: bool) -> None:
    dice = np.random.default_rng(count)
    labels = np.concatenate([np.arange(count), dice.integers(0, count, 60)])
    vectors = dice.normal(size=(len(labels), 8)) * 3 + 5 + np.eye(count, 8)[labels]
    head = fit_head(vectors, labels, balance=balance)
    assert head.weight.shape == (count, 8) and head.bias.shape == (count,)
    apart = np.sqrt(np.mean([np.sum((vector - vectors.mean(0)) ** 2) for vector in vectors]))
    weights = "balanced" if balance else None
    theirs = LogisticRegression(C=100, tol=1e-10, max_iter=100_000, class_weight=weights)  # by another solver
    theirs.fit(vectors / apart, labels)
    new = dice.normal(size=(20, 8)) * 3 + 5
    odds = np.exp(head.logits(new))
    np.testing.assert_allclose(
        odds / odds.sum(1, keepdims=True), theirs.predict_proba(new / apart), rtol=1e-4
    )
    np.testing.assert_allclose(head.logits(new * 0), np.broadcast_to(head.bias, (20, count)))


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SMALL, vocab_size=20, num_labels=3),
        RobertaConfig(**SMALL, vocab_size=20, num_labels=3),
        DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=20, num_labels=16),
        ModernBertConfig(**SMALL, vocab_size=20, num_labels=3, pad_token_id=0, classifier_pooling="mean"),
    ],
    ids=lambda config: config.model_type,
)
def test_what_the_last_layer_reads_makes_the_logits(config: object) -> None:
    """Also where a layer inside is as wide as there are labels."""
    model = AutoModelForSequenceClassification.from_config(config).eval()
    batch = {
        "input_ids": torch.tensor([[2, 7, 9, 3], [2, 5, 3, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    with torch.no_grad():
        torch.testing.assert_close(last_layer(model)(read_by_head(model, batch)), model(**batch).logits)


def test_what_cannot_be_is_refused() -> None:
    llama = AutoModelForSequenceClassification.from_config(LlamaConfig(**SMALL, vocab_size=20, num_labels=3))
    with pytest.raises(ModelError, match="ends in a linear layer with a bias; llama has none"):
        SupervisedContrast(llama, 4)
    alone = make_task(TaskConfig(kind="classify", contrast=True))
    with pytest.raises(DataError, match="the label 'b' has one training example"):
        alone.labels(Counter({"a": 4, "b": 1, "c": 2}))
    for words, said in (
        ("task={kind: tag, contrast: true}", "contrast belongs to kind classify"),
        ("task={kind: classify, together: 4}", "with contrast: true alone"),
        ("task={kind: classify, contrast: true, multiple: true}", "multiple must be false"),
        ("regularise.label_smoothing=0.1", "compares texts"),
        ("regularise.r_drop=1.0", "compares texts"),
        ("distil=somewhere", "compares texts"),
        ("tune=lora", "tune.method must be full or last"),
        ("tune.quantize=int8", "without tune.quantize"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(None, ["task={kind: classify, contrast: true}", words])
    load_config(None, ["task={kind: classify, contrast: true}", "regularise.word_drop=0.1", "tune=last"])
