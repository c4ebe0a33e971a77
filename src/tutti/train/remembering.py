"""Elastic weight consolidation: weights that former examples depend on are held near what they were.

    L(θ) = ℓ(θ) + λ/2 Σᵢ Fᵢ (θᵢ − θᵢ*)²        Fᵢ = Σ gᵢ² / targets        (Kirkpatrick et al. 2017, arXiv 1612.00796)

ℓ is the mean over the targets of the new examples, θ* the weights that the run began with, g the gradient at θ* of the
summed loss of one former example (the empirical Fisher information). So F is in the units of a mean over targets, and
λ = 1 counts the former targets as much as the new ones.

The term's gradient, λ F (θ − θ*), is added when that of ℓ has been summed over all workers: elementwise, so on each
rank to the part that it holds, and the step is the same however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from tutti.core import Objective
from tutti.core.types import SampleSource
from tutti.sync.policy import local_part, named_trainable


@dataclass(frozen=True)
class Known:
    """What a whole model knows: its `weights`, and the `importance` of each to former examples, by name; on the CPU."""

    weights: dict[str, Tensor]
    importance: dict[str, Tensor]


def find_known(objective: Objective, former: SampleSource) -> Known:
    """What `objective`, in fp32 and not yet laid out, knows of the samples `former`. Without dropout."""
    parameters = dict(named_trainable(objective))
    importance = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    targets, training = 0, objective.training
    objective.eval()
    for number in range(former.samples_in_epoch(0)):
        total, counted = objective(former.load(0, np.array([number])))
        targets += int(counted)
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                importance[name].addcmul_(gradient, gradient)
    objective.train(training)
    return Known(
        {name: parameter.detach().clone() for name, parameter in parameters.items()},
        {name: squares / max(1, targets) for name, squares in importance.items()},
    )


class Hold:
    """Holds the parameters of `objective`, laid out as it may be, to what is `known`, with weight λ."""

    def __init__(self, objective: Objective, known: Known, weight: float) -> None:
        self._held = [
            (parameter, _placed(known.weights[name], parameter), weight * _placed(fisher, parameter))
            for name, parameter in named_trainable(objective)
            if (fisher := known.importance[name]).any()
        ]

    @torch.no_grad()
    def add_gradients(self, scale: float) -> None:
        """Add `scale` times the term's gradient to those that there are."""
        for parameter, weights, stiffness in self._held:
            if parameter.grad is not None:
                away = local_part(parameter) - weights
                local_part(parameter.grad).addcmul_(away, stiffness, value=scale)


def _placed(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of `whole`, which is one of `parameter`'s shape."""
    if isinstance(parameter, DTensor):
        # Its first rank's, so that all ranks hold to the same numbers.
        return distribute_tensor(
            whole.to(parameter.device), parameter.device_mesh, parameter.placements
        ).to_local()
    return whole.to(parameter.device)
