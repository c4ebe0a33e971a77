"""Learning from a teacher, beside the equation in NumPy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from encoders import write_encoder
from tutti.config.task import DistilConfig
from tutti.models import find_blocks
from tutti.tasks.attention import relations_apart
from tutti.tasks.classify import OneLabel, SeveralLabels
from tutti.tasks.dense import install
from tutti.tasks.packing import ATTENTION
from tutti.tasks.teachers import Teachers


class Fixed(nn.Module):
    """Says the same of every batch."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.said = nn.Parameter(logits)

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.said)


def draw(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * 3


BATCH = {
    "input_ids": torch.ones(4, 2, dtype=torch.int64),
    "attention_mask": torch.ones(4, 2, dtype=torch.int64),
    "labels": torch.tensor([0, 2, -100, 1]),
}
TAUGHT = [0, 1, 3]


def kl(one: np.ndarray, other: np.ndarray) -> float:
    return float((np.exp(one) * (one - other)).sum())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("teachers", [1, 2])
def test_the_loss_is_that_of_the_paper(reverse: bool, teachers: int) -> None:
    config = DistilConfig(teacher="x", weight=0.3, temperature=2.5, reverse=reverse)
    learner = OneLabel(Fixed(draw(0)))
    learner.teachers = Teachers([OneLabel(Fixed(draw(9 + n))) for n in range(teachers)], config)
    plain = learner.eval()(BATCH)
    loss = learner.train()(BATCH)
    own = log_softmax(draw(0).numpy()[TAUGHT] / 2.5, 1)
    told = [np.exp(log_softmax(draw(9 + n).numpy()[TAUGHT] / 2.5, 1)) for n in range(teachers)]
    theirs = np.log(np.mean(told, 0))
    divergence = kl(own, theirs) if reverse else kl(theirs, own)
    expected = 0.7 * float(plain.total) + 0.3 * 2.5**2 * divergence
    assert float(loss.total) == pytest.approx(expected, rel=1e-4)
    assert int(loss.targets) == 3
    # What is shown to the user is the loss of the labels alone.
    assert float(loss.total) - learner.added() == pytest.approx(float(plain.total), rel=1e-4)
    loss.total.backward()
    assert learner.model.said.grad is not None


def test_who_thinks_as_the_teacher_does_learns_from_labels_alone() -> None:
    learner = OneLabel(Fixed(draw(1)))
    learner.teachers = Teachers([OneLabel(Fixed(draw(1)))], DistilConfig(teacher="x", weight=1.0))
    loss = learner.train()(BATCH)
    assert float(loss.total) == pytest.approx(0, abs=1e-5)
    loss.total.backward()
    assert float(learner.model.said.grad.abs().max()) < 1e-5


def test_several_labels_are_taught_one_by_one() -> None:
    batch = {
        **BATCH,
        "labels": torch.tensor([[0, -100], [1, 2], [-100, -100], [0, 2]]),
        "weight": torch.ones(4),
    }
    learner = SeveralLabels(Fixed(draw(2)))
    config = DistilConfig(teacher="x", weight=1.0, temperature=1.0)
    learner.teachers = Teachers([SeveralLabels(Fixed(draw(3)))], config)
    own, theirs = (1 / (1 + np.exp(-draw(seed).numpy().astype(np.float64))) for seed in (2, 3))
    both = theirs * np.log(theirs / own) + (1 - theirs) * np.log((1 - theirs) / (1 - own))
    assert float(learner.train()(batch).total) == pytest.approx(both.mean(1).sum(), rel=1e-4)


def relations(values: np.ndarray, heads: int) -> np.ndarray:
    """[S, D] → log softmax(H Hᵀ / √d) of each head."""
    cut = values.reshape(len(values), heads, -1).transpose(1, 0, 2)
    return log_softmax(cut @ cut.transpose(0, 2, 1) / np.sqrt(cut.shape[2]), -1)


def test_relations_between_tokens_are_those_of_the_paper() -> None:
    random = np.random.default_rng(0)
    theirs, own = (random.normal(size=(3, 2, 5, width)).astype(np.float32) for width in (24, 12))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = 0.0
    for kind in range(3):
        for row, length in enumerate(mask.sum(1)):
            told, said = (relations(one[kind, row, :length], 12) for one in (theirs, own))
            expected += float((np.exp(told) * (told - said)).sum(-1).mean()) / 3
    found = relations_apart(
        [torch.from_numpy(one) for one in theirs],
        [torch.from_numpy(one) for one in own],
        torch.from_numpy(mask),
    )
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_hidden_states_are_learned_also_without_padding(kind: str, tmp_path: Path) -> None:
    """The last layer's relations of packed rows (`tasks.dense`) are those of padded ones."""
    directory = write_encoder(tmp_path / kind, kind)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = {
        "input_ids": torch.arange(12).view(2, 6) + 5,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1]),
    }
    losses = []
    for dense in (False, True):
        models = []
        for seed in (1, 2):
            model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3)
            torch.manual_seed(seed)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            if dense:
                assert install(model, find_blocks(model), ATTENTION)
            models.append(model.eval())
        learner = OneLabel(models[0])
        learner.teachers = Teachers([OneLabel(models[1])], DistilConfig(teacher="x", hidden=2.0))
        learner.teachers.look_into(*map(find_blocks, models))
        learner.train()
        models[0].eval()  # no dropout
        loss = learner(batch)
        loss.total.backward()
        losses.append(float(loss.total))
        assert models[1].get_input_embeddings().weight.grad is None
    without = OneLabel(models[0])
    without.teachers = Teachers([OneLabel(models[1])], DistilConfig(teacher="x"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    without.train()
    models[0].eval()
    assert losses[0] > float(without(batch).total) + 1e-3


def test_teachers_are_no_part_of_the_model() -> None:
    learner = OneLabel(Fixed(draw(4)))
    learner.teachers = Teachers([OneLabel(Fixed(draw(5)))], DistilConfig(teacher="x"))
    assert [name for name, _ in learner.named_parameters()] == ["model.said"]
