"""Learning from a teacher, beside the equation in NumPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from tutti.config.task import DistilConfig
from tutti.tasks.classify import OneLabel, SeveralLabels
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


def test_teachers_are_no_part_of_the_model() -> None:
    learner = OneLabel(Fixed(draw(4)))
    learner.teachers = Teachers([OneLabel(Fixed(draw(5)))], DistilConfig(teacher="x"))
    assert [name for name, _ in learner.named_parameters()] == ["model.said"]
