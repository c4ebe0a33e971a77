"""A tiny regression with unequal numbers of targets per sample: what exact gradients are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutti.core.types import Batch, LossSum, Objective


class Net(nn.Module):
    """Two layers with a tied weight and a parameter that never gets a gradient."""

    def __init__(self, width: int = 6, unused: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.head = nn.Linear(width, 3)
        self.unused = nn.Parameter(torch.ones(5)) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class MaskedSquares(Objective):
    """Sum of squared errors over the targets that count."""

    def forward(self, batch: Batch) -> LossSum:
        errors = (self.model(batch["x"]) - batch["y"]).square().sum(-1) * batch["counts"]
        return LossSum(errors.sum(), batch["counts"].sum())

    def count_targets(self, batch: Batch) -> int:
        return int(batch["counts"].sum())


class Numbers:
    """64 samples; sample i has x and y from its number alone, and every third one counts for nothing."""

    fingerprint = "numbers"

    def __init__(self, width: int = 6, samples: int = 64) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(samples, width, generator=generator)
        self.y = torch.randn(samples, 3, generator=generator)
        self.counts = torch.tensor([float(i % 3) for i in range(samples)])

    def samples_in_epoch(self, epoch: int) -> int:
        return len(self.x)

    def load(self, epoch: int, indices: Sequence[int] | np.ndarray) -> Batch:
        chosen = torch.as_tensor(np.asarray(indices))
        return {"x": self.x[chosen], "y": self.y[chosen], "counts": self.counts[chosen]}

    def empty(self) -> Batch:
        return {"x": self.x[:1], "y": self.y[:1], "counts": torch.zeros(1)}


def make_objective(seed: int = 3, **options: Any) -> MaskedSquares:
    torch.manual_seed(seed)
    return MaskedSquares(Net(**options))


def reference_gradients(
    source: Numbers, objective: MaskedSquares, samples: Sequence[int]
) -> dict[str, Tensor]:
    """Mean over the targets of `samples`, in one piece, by autograd alone."""
    total, targets = objective(source.load(0, samples))
    (total / targets).backward()
    gradients = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    return gradients
