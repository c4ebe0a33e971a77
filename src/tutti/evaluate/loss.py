"""The loss of a model on samples that it was not trained on, exactly the same on any number of ranks."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tutti.core.types import SampleSource, module_device


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean nats per target. `bits_per_byte`: of the text behind the targets, where there is text."""

    loss: float
    bits_per_byte: float | None
    targets: int

    @classmethod
    def of(cls, sums: Tensor) -> Evaluation:
        """From the sums of `sum_losses`, added over all ranks."""
        loss, targets, bytes_ = sums.tolist()
        bits = loss / math.log(2) / bytes_ if bytes_ > 0 else None
        return cls(loss / max(targets, 1), bits, round(targets))


def spread(samples: int, available: int) -> np.ndarray:
    """`samples` sample numbers spread evenly over `available` ones (all of them when there are fewer)."""
    samples = min(samples, available)
    return np.arange(samples, dtype=np.int64) * available // samples


def sum_losses(
    module: nn.Module,
    source: SampleSource,
    *,
    samples: int,
    part: int,
    parts: int,
    micro_batch: int,
    context: AbstractContextManager[None],
    target_bytes: Tensor | None,
) -> Tensor:
    """Float64 [3]: loss, targets and bytes over this rank's part of `samples` samples of epoch 0.

    Every part runs the same number of micro-batches (empty ones where it has fewer), as sharded models need.
    """
    device = module_device(module)
    numbers = spread(samples, source.samples_in_epoch(0))
    mine = np.array_split(numbers, parts)[part]
    slots = math.ceil(math.ceil(len(numbers) / parts) / micro_batch)
    sums = torch.zeros(3, dtype=torch.float64)
    was_training = module.training
    module.eval()
    with torch.no_grad():
        for slot in range(slots):
            indices = mine[slot * micro_batch : (slot + 1) * micro_batch]
            batch = source.load(0, indices) if len(indices) else source.empty()
            with context:
                total, targets = module({name: tensor.to(device) for name, tensor in batch.items()})
            if len(indices):
                sums += torch.tensor(
                    [float(total), float(targets), _bytes(batch.get("labels"), target_bytes)]
                )
    module.train(was_training)
    return sums


def _bytes(labels: Tensor | None, target_bytes: Tensor | None) -> float:
    if labels is None or target_bytes is None:
        return 0.0
    return float(target_bytes[labels[labels >= 0]].sum())
