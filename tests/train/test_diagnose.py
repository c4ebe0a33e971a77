"""Bad numbers are named: the step, and the first layer in which they appear."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from toys import Numbers, make_objective
from tutti.core import TrainingError
from tutti.train.diagnose import LossGuard, bad_numbers, first_bad_layer, largest_gradient


class Poison(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0.0 * 0.0


def test_the_first_bad_output_is_named_not_a_later_one() -> None:
    objective = make_objective()
    objective.model.second = nn.Sequential(nn.Linear(6, 6), Poison())
    batch = Numbers().load(0, [1, 2])
    found = first_bad_layer(objective, [batch], nullcontext())
    assert found == ("output of layer second.1 is not finite", True)


def test_a_bad_parameter_comes_before_outputs() -> None:
    objective = make_objective()
    with torch.no_grad():
        objective.model.head.bias[0] = math.inf
    found = first_bad_layer(objective, [Numbers().load(0, [1])], nullcontext())
    assert found == ("parameter head.bias is not finite", True)


def test_a_bad_gradient_after_a_sound_forward_pass() -> None:
    objective = make_objective()
    objective.model.head.weight.grad = torch.full((3, 6), math.nan)
    found = first_bad_layer(objective, [Numbers().load(0, [1])], nullcontext())
    assert found == ("gradient of head.weight is not finite", False)  # of the sum: another rank's, perhaps


def test_explosion_takes_several_steps_and_forgives_one() -> None:
    guard = LossGuard()
    assert not any(guard.exploded(1.0 + 0.1 * (step % 3)) for step in range(10))
    assert [guard.exploded(loss) for loss in (5.0, 5.0, 5.0, 5.0, 1.0)] == [False] * 5
    assert [guard.exploded(9.0) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(("first", "fine", "gone"), [(-3.0, -1.0, 0.5), (0.0, 0.0, 0.1), (2.0, 3.9, 4.1)])
def test_a_loss_below_zero_explodes_above_it(first: float, fine: float, gone: float) -> None:
    guard = LossGuard()
    assert not any(guard.exploded(loss) for loss in [first] * 10 + [fine] * 20)
    assert [guard.exploded(gone) for _ in range(5)] == [False] * 4 + [True]


def test_the_error_says_step_and_what_to_do() -> None:
    objective = make_objective()
    total, _ = objective(Numbers().load(0, [1, 2]))
    total.backward()
    worst = max(
        (n for n, p in objective.named_parameters() if p.grad is not None),
        key=lambda n: float(objective.get_parameter(n).grad.norm()),  # type: ignore[union-attr]
    )
    assert largest_gradient(objective) == worst.removeprefix("model.")
    with pytest.raises(TrainingError, match=r"step 7: loss nan") as caught:
        raise bad_numbers(7, math.nan, math.nan, "output of layer x is not finite")
    assert "learning_rate" in caught.value.hint
