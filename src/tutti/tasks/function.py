"""Any `nn.Module` with any loss as an `Objective`: what `tutti.fit` trains.

A user's loss is nearly always a mean over the batch, and means cannot be added up. So it is turned into the
sum over samples here, once; everything downstream only ever sees sums and counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tutti.core import Batch, LossSum, Objective, TrainingError

Loss = Callable[[Any, Any], Any]


class FunctionObjective(Objective):
    """`loss(model(inputs), targets)` over batches `{"inputs": [B, …], "targets": [B, …], "weight": float [B]}`.

    `weight` 1 marks a sample, 0 a place-holder (a rank without samples computes an empty batch); it may be
    left out, then all count. The loss may return

    - a scalar: the mean over the B samples (place-holders then have to be all or none of a batch),
    - a vector [B]: one loss a sample (`reduction="none"`),
    - a `LossSum`: the sum and how many targets it covers, e.g. for targets that are not one a sample.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__(model)
        self.loss = loss

    def forward(self, batch: Batch) -> LossSum:
        """Sum of the loss over the samples of `batch`, and their number."""
        inputs, targets = batch["inputs"], batch["targets"]
        value = self.loss(self.model(inputs), targets)
        weight = batch.get("weight")
        if weight is None:
            weight = torch.ones(inputs.shape[0], device=inputs.device)
        if isinstance(value, LossSum):
            # An empty batch still has to pass through the model, so that every rank takes part in backward.
            some = (weight > 0).any()
            count = torch.as_tensor(value.targets, device=some.device)
            return LossSum(value.total * some, count * some)
        if not isinstance(value, Tensor):
            raise _unusable(f"a {type(value).__name__}")
        if value.ndim == 1 and value.shape[0] == inputs.shape[0]:
            return LossSum((value * weight).sum(), weight.sum())
        if value.numel() == 1 and value.is_floating_point():
            return LossSum(value.reshape(()) * weight.sum(), weight.sum())
        raise _unusable(f"a tensor of shape {tuple(value.shape)} for {inputs.shape[0]} samples")

    def count_targets(self, batch: Batch) -> int:
        """Samples that count. (For a loss that returns a `LossSum`, its own count goes.)"""
        weight = batch.get("weight")
        return int(batch["inputs"].shape[0] if weight is None else weight.sum())


def _unusable(what: str) -> TrainingError:
    return TrainingError(
        f"the loss returned {what}",
        "return the mean over the batch as a scalar, one value a sample ([B]), or tutti.LossSum(total, targets)",
    )
