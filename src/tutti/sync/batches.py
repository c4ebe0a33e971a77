"""How many samples each step takes: the same number, or fewer while the batch warms up.

Of the first `steps` steps, step s (from 1) takes start + ⌊(s − 1) · (batch − start) ÷ steps⌋ samples, every later one
`batch`. Early gradients are so alike that few samples say as much as many (McCandlish et al. 2018, arXiv 1812.06162),
and small batches make more steps of the same text (as in GPT-3, arXiv 2005.14165, and Megatron's ramp).
"""

from __future__ import annotations

from dataclasses import dataclass

from tutti.config.training import TrainConfig


@dataclass(frozen=True)
class BatchSizes:
    """`start`, `steps`: of the warm-up; 0: there is none."""

    batch: int
    start: int = 0
    steps: int = 0

    @classmethod
    def of(cls, train: TrainConfig, batch: int) -> BatchSizes:
        """Those of `train`, whose batch is `batch`."""
        warmup = train.batch_warmup
        return cls(batch) if warmup is None else cls(batch, warmup.start, warmup.steps)

    def at(self, step: int) -> int:
        """Samples of step number `step`, counted from 1."""
        if step > self.steps:
            return self.batch
        return self.start + (step - 1) * (self.batch - self.start) // self.steps

    def total(self, steps: int) -> int:
        """Samples of the first `steps` steps."""
        growing = min(steps, self.steps)
        return sum(map(self.at, range(1, growing + 1))) + (steps - growing) * self.batch

    def steps_for(self, samples: float) -> int:
        """Steps that take about so many `samples`; at least 1."""
        if samples >= (whole := self.total(self.steps)):
            return max(1, self.steps + round((samples - whole) / self.batch))
        return max(1, min(range(1, self.steps + 1), key=lambda steps: abs(self.total(steps) - samples)))
