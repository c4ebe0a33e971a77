"""Any module and any loss as an objective."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.core import LossSum, TrainingError
from tutti.tasks import FunctionObjective


def _batch(weight: list[float] | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    batch = {"inputs": torch.randn(4, 3), "targets": torch.randint(2, (4,))}
    return batch if weight is None else batch | {"weight": torch.tensor(weight)}


def _vector(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _summed(outputs: Tensor, targets: Tensor) -> LossSum:
    return LossSum(F.cross_entropy(outputs, targets, reduction="sum"), torch.tensor(len(targets)))


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), _vector, _summed])
def test_every_kind_of_loss_gives_the_sum_over_samples(loss: Any) -> None:
    objective = FunctionObjective(nn.Linear(3, 2), loss)
    batch = _batch()
    result = objective(batch)
    expected = F.cross_entropy(objective.model(batch["inputs"]), batch["targets"], reduction="sum")
    torch.testing.assert_close(result.total, expected)
    assert result.targets == 4 == objective.count_targets(batch)


@pytest.mark.parametrize("loss", [F.cross_entropy, _vector, _summed])
def test_an_empty_batch_adds_nothing_but_reaches_every_parameter(loss: Any) -> None:
    objective = FunctionObjective(nn.Linear(3, 2), loss)
    result = objective(_batch([0, 0, 0, 0]))
    result.total.backward()
    assert result.total.item() == 0 and result.targets == 0
    assert objective.count_targets(_batch([0, 0, 0, 0])) == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in objective.parameters())


def test_weights_of_a_vector_loss() -> None:
    objective = FunctionObjective(nn.Linear(3, 2), _vector)
    batch = _batch([1, 0, 1, 0])
    values = _vector(objective.model(batch["inputs"]), batch["targets"])
    result = objective(batch)
    torch.testing.assert_close(result.total, values[0] + values[2])
    assert result.targets == 2 == objective.count_targets(batch)


@pytest.mark.parametrize("value", [1.0, None, torch.zeros(4, 2), torch.tensor(3)])
def test_an_unusable_loss_is_named(value: Any) -> None:
    objective = FunctionObjective(nn.Linear(3, 2), lambda outputs, targets: value)
    with pytest.raises(TrainingError, match="the loss returned") as caught:
        objective(_batch())
    assert "mean over the batch" in caught.value.hint
