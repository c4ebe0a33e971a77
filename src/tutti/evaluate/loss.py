"""The loss of a model on samples that it was not trained on, exactly the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutti.core.live import beat
from tutti.core.types import Batch, Objective, SampleSource


@dataclass(frozen=True)
class Evaluation:
    """`loss`: mean nats per target. `bits_per_byte`: of the text behind the targets, where there is text."""

    loss: float
    bits_per_byte: float | None
    targets: int

    @classmethod
    def of(cls, sums: Tensor) -> Evaluation:
        """From the sums of `sum_losses`, added over all ranks."""
        loss, targets, bytes_ = sums[:3].tolist()
        bits = loss / math.log(2) / bytes_ if bytes_ > 0 else None
        return cls(loss / max(targets, 1), bits, round(targets))


@dataclass(frozen=True)
class Answering:
    """`objective` answers to a sample with up to `width` numbers."""

    objective: Objective
    width: int


@contextmanager
def listening(objective: Objective) -> Iterator[list[Tensor]]:
    """What `objective` answers meanwhile, batch by batch."""
    answers: list[Tensor] = []
    objective.answers = answers
    try:
        yield answers
    finally:
        objective.answers = None


def evaluation_numbers(source: SampleSource | None, samples: int, width: int) -> int:
    """How many numbers `sum_losses` gives for `samples` of `source` and answers of `width`."""
    return 3 + (0 if source is None else min(samples, source.samples_in_epoch(0)) * width)


def answers_in(sums: Tensor, samples: int) -> NDArray[np.float64]:
    """The answers [samples, width] in what `sum_losses` returned, added over all ranks."""
    sheet: NDArray[np.float64] = sums[3:].view(samples, -1).numpy()
    return sheet


def spread(samples: int, available: int) -> np.ndarray:
    """`samples` sample numbers spread evenly over `available` ones (all of them when there are fewer)."""
    samples = min(samples, available)
    return np.arange(samples, dtype=np.int64) * available // samples


def sum_losses(
    measure: Callable[[Iterable[Batch]], tuple[float, int]],
    source: SampleSource,
    *,
    samples: int,
    part: int,
    parts: int,
    micro_batch: int,
    device: torch.device,
    target_bytes: Tensor | None,
    speaks: bool = True,
    answering: Answering | None = None,
) -> Tensor:
    """Float64 [3 + samples · width]: loss, targets and bytes over this rank's part of `samples` samples of epoch 0;
    and the answers to all samples, of which this rank fills in its own.

    `measure` gives loss and targets of batches. Every part has the same number of micro-batches (empty ones where
    it has fewer samples), as sharded models need. `speaks`: of ranks with the same part, the one that counts bytes
    and answers.
    """
    numbers = spread(samples, source.samples_in_epoch(0))
    mine = np.array_split(numbers, parts)[part]
    slots = math.ceil(math.ceil(len(numbers) / parts) / micro_batch)
    text_bytes = 0.0

    def batches() -> Iterator[Batch]:
        nonlocal text_bytes
        for slot in range(slots):
            beat()
            indices = mine[slot * micro_batch : (slot + 1) * micro_batch]
            batch = source.load(0, indices) if len(indices) else source.empty()
            if len(indices) and speaks:
                text_bytes += _bytes(batch.get("labels"), target_bytes)
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    if answering is None:
        loss, targets = measure(batches())
        return torch.tensor([loss, targets, text_bytes], dtype=torch.float64)
    with listening(answering.objective) as answers:
        loss, targets = measure(batches())
    sheet = torch.zeros(len(numbers), answering.width, dtype=torch.float64)
    first = int(np.searchsorted(numbers, mine[0])) if len(mine) else 0
    for slot, answer in enumerate(answers if speaks else ()):
        count = min(micro_batch, len(mine) - slot * micro_batch)
        if count > 0:
            at = first + slot * micro_batch
            sheet[at : at + count, : answer.shape[1]] = answer[:count].double().cpu()
    return torch.cat([torch.tensor([loss, targets, text_bytes], dtype=torch.float64), sheet.flatten()])


def _bytes(labels: Tensor | None, target_bytes: Tensor | None) -> float:
    if labels is None or target_bytes is None:
        return 0.0
    return float(target_bytes[labels[labels >= 0]].sum())
