"""Policy `diloco`: the outer step is SGD with Nesterov momentum.

Douillard et al. 2023 (arXiv 2311.08105); θ_old and Δ as in `rounds`:

    m ← μ m + Δ
    θ ← θ_old − η (Δ + μ m)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tutti.sync.policy import placed_like
from tutti.sync.rounds import Rounds


class DiLoCo(Rounds):
    """`learning_rate` η and `momentum` μ of the outer optimizer; the rest as `Rounds`."""

    def __init__(self, *rest: Any, learning_rate: float, momentum: float, **others: Any) -> None:
        super().__init__(*rest, **others)
        self._learning_rate = learning_rate
        self._momentum = momentum

    def attach(self, objective: nn.Module) -> nn.Module:
        attached = super().attach(objective)
        self._outer_momentum = torch.zeros_like(self._agreed)
        return attached

    def tensors(self) -> dict[str, Tensor]:
        views = self._views(self._outer_momentum)
        return {name: placed_like(views[name], parameter) for name, parameter in self._parameters.items()}

    def give(self) -> dict[str, Any]:
        return super().give() | {"outer_momentum": self._outer_momentum}

    def take(self, state: dict[str, Any]) -> None:
        self._outer_momentum.copy_(state["outer_momentum"])
        super().take(state)

    def _outer_step(self, mean: Tensor, place: slice) -> None:
        momentum = self._outer_momentum[place]
        momentum.mul_(self._momentum).add_(mean)
        self._agreed[place].sub_(mean.add(momentum, alpha=self._momentum), alpha=self._learning_rate)
