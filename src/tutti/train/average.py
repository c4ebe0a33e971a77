"""The average of the weights over the last part of the way, which is a better model than the weights of any step.

    a ← a + w (θ − a)        w = max(1 − e^(−n/h), min(1, 9 n / (10 + t)))

n: steps since the last time (of replicas that drift, those of a round; else 1); t: steps so far; h: the horizon. The
second term lets the average forget its first weights faster than others (as TensorFlow's moving average does). Polyak
and Juditsky 1992; of language models arXiv 2306.03241.

The average lies in the optimizer's state, beside its own averages: so it is sharded, saved, resharded and handed to
newcomers as they are. Where `memory.offload` has the state of a CPU's optimizer in files, the average stays in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tutti.sync.policy import local_part
from tutti.train.checkpoints import AVERAGE, initialise


class WeightAverage:
    """Of all parameters that `optimizers` step, over about `horizon` steps. Begins with the weights as they are."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], horizon: float) -> None:
        self._horizon = horizon
        self._kept = []
        for optimizer in optimizers:
            initialise(optimizer)
            for parameter, values in optimizer.state.items():
                values[AVERAGE] = parameter.detach().clone()
                self._kept.append((parameter, values))

    @torch.no_grad()
    def update(self, steps: int, now: int) -> None:
        """So many `steps` were made, and step number `now` is the last."""
        if steps <= 0:
            return
        weight = max(1 - math.exp(-steps / self._horizon), min(1.0, 9 * steps / (10 + now)))
        for parameter, average in self._pairs():
            average.lerp_(parameter, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters are their averages; afterwards they are, bit for bit, what they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in self._pairs():
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((local_part(p.detach()), local_part(values[AVERAGE])) for p, values in self._kept)
