"""What is to be trained, in the loop's terms: an objective, samples, and what to do with the result.

The loop must not know that a model is a language model; what is particular to one stands in a `Job`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tutti.core.types import Objective, SampleSource
from tutti.models.adalora import RankAllocation
from tutti.train.remembering import Known


@dataclass
class Job(ABC):
    """Everything about a training that is not the training itself. Built alike on every rank."""

    objective: Objective
    train_data: SampleSource
    validation_data: SampleSource | None
    #: Tokens (or other units of throughput) in one sample.
    tokens_per_sample: int
    #: Forward and backward FLOPs of one sample; None when nobody has said.
    flops_per_sample: float | None = None
    #: Parameters of the whole model.
    parameters: int = 0
    #: Bytes of text behind each target id [V]; None when targets are not text.
    target_bytes: Tensor | None = None
    choices: list[str] = field(default_factory=list)
    #: Whether what the model makes of a sample depends on those beside it, as with batch normalisation.
    depends_on_batch: bool = False
    #: What the model must not forget; None: nothing is held.
    known: Known | None = None
    #: What gives and takes rank while adapters learn, where they have no fixed one.
    allocation: RankAllocation | None = None
    #: Numbers in the model's answer to a sample, of which `score` makes metrics; 0: there is none but the loss.
    answer_width: int = field(default=0, init=False)
    #: The metric, more of which is better, that decides which model is the best (None: the loss does).
    main_metric: str | None = field(default=None, init=False)

    @abstractmethod
    def whole_model(self) -> nn.Module:
        """A model like the trained one, unsharded, whose weights are about to be replaced."""

    @abstractmethod
    def export(self, model: nn.Module, destination: Path) -> None:
        """Write the trained `model` as something that others can open."""

    def complete(self, model: nn.Module, context: AbstractContextManager[None]) -> None:  # noqa: B027 - most need none
        """Whatever the trained, whole `model` still needs before it is handed on."""

    def score(
        self, source: SampleSource, numbers: NDArray[np.int64], answers: NDArray[np.float64]
    ) -> dict[str, float]:
        """Metrics of the `answers` [samples, width] to the samples `numbers` of `source`."""
        return {}

    def examine(self, model: nn.Module, context: AbstractContextManager[None]) -> dict[str, Any] | None:
        """Loss and metrics of the whole `model` on the examples for the final test (None: there are none)."""
        return None

    def write_samples(  # noqa: B027 - a job without text has nothing to show
        self, model: nn.Module, say: Callable[[str, str], None], new_tokens: int | None = None
    ) -> None:
        """Let the trained `model` show what it can do: `say(prompt, text)`; `new_tokens` limits how long."""
