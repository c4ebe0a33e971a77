"""The few types that everybody speaks.

Shapes: B samples, S tokens of a sequence, D model width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: What a sample source yields and a model is given: named tensors whose first dimension is B.
Batch = Mapping[str, Tensor]


class LossSum(NamedTuple):
    """A loss that can be added up: exact gradients need the sum, never the mean of means.

    `total`: scalar, sum of the loss over the targets. `targets`: scalar, how many targets were summed.
    """

    total: Tensor
    targets: Tensor


@runtime_checkable
class SampleSource(Protocol):
    """Samples by number: a pure function of (epoch, index); ranks never own data.

    `fingerprint` names the content (a resume with other data is refused).
    """

    fingerprint: str

    def samples_in_epoch(self, epoch: int) -> int:
        """How many samples epoch `epoch` has (at least 1)."""
        ...

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The samples `indices` (each below `samples_in_epoch(epoch)`), collated in that order, on the CPU."""
        ...

    def empty(self) -> Batch:
        """One sample without any target: what a rank computes when its peers have more micro-batches."""
        ...


class Objective(nn.Module):
    """A model together with its loss: `forward(batch) -> LossSum`.

    The training loop, DDP, FSDP and the compiler see only this module, so they need not know what the
    model is. The trained model itself is `self.model`; its parameter names are those that are saved.
    """

    model: nn.Module
    #: A penalty on the weights, a scalar that is added to the mean of the loss while the model trains (None: nothing).
    penalty: Callable[[], Tensor] | None = None
    #: While this is a list, `forward` appends what the model answers: a tensor [B, any] for each batch.
    answers: list[Tensor] | None = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> LossSum:
        """Sum of the loss over the targets of `batch`, and their number."""
        raise NotImplementedError

    def say(self, batch: Batch) -> None:
        """Have the answers to `batch` noted, where nobody wants to know the loss."""
        self(batch)

    def count_targets(self, batch: Batch) -> int:
        """Number of targets of `batch`, without running the model."""
        raise NotImplementedError

    def answer(self, answers: Tensor) -> None:
        """Note the `answers` [B, any] to the batch at hand, if somebody wants to know them."""
        if self.answers is not None:
            self.answers.append(answers.detach())

    def added(self) -> float:
        """What stood in the totals beside the loss itself since this was last asked (a term of the task)."""
        return 0.0


def module_device(module: nn.Module) -> torch.device:
    """The device that the module's first parameter lives on (CPU for a module without parameters)."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
