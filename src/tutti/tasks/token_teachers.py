"""Learning to write from models that write already: what they think of every next token, beside what it was.

    w T² Σ KL(p_T ‖ p) + (1 − w) ℓ      (Hinton et al. 2015, arXiv 1503.02531)

p and p_T: of a token that is a target, softened by the temperature T; p_T is the mean over the teachers. `reverse`:
KL(p ‖ p_T) instead (MiniLLM: Gu et al. 2023, arXiv 2306.08543, on given texts). As an addend of the loss ℓ (`terms`)
this is w (T² Σ KL − ℓ), so whole logits of the learner never exist at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from tutti.config.task import DistilConfig
from tutti.core import Batch
from tutti.core.types import module_device
from tutti.tasks.distillation import divergence, reverse_divergence, soften
from tutti.tasks.terms import Added, Addend


class Predicts(Protocol):
    """An objective of a model that writes."""

    model: nn.Module

    def predict(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Run the model on `batch`. What comes back gives the logits [n, V] (fp32) at places [n] of its labels."""
        ...


class TokenTeachers:
    """Models with the same vocabulary, as objectives of their own: a `LossTerm`. They are no part of the one that
    learns."""

    def __init__(self, objectives: Sequence[Predicts], config: DistilConfig) -> None:
        self._objectives = objectives
        self._weight, self._temperature, self._reverse = config.weight, config.temperature, config.reverse
        for objective in objectives:
            objective.model.requires_grad_(False).eval()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def of(self, batch: Batch) -> Addend | None:
        """What is to be added for the targets of `batch`; None: it has none."""
        labels = batch["labels"].reshape(-1)
        if not bool((labels >= 0).any()):
            return None
        for objective in self._objectives:
            if module_device(objective.model) != labels.device:
                objective.model.to(labels.device)
        asked = [objective.predict(batch) for objective in self._objectives]
        weight, temperature = self._weight, self._temperature

        def addend(places: Tensor, logits: Tensor) -> Added:
            told = torch.stack([soften(ask(places).to(logits.dtype), temperature) for ask in asked])
            theirs = told.logsumexp(0) - math.log(len(told))
            apart, gradient = (reverse_divergence if self._reverse else divergence)(
                soften(logits, temperature), theirs
            )
            own, target = torch.log_softmax(logits, 1), labels[places][:, None]
            gradient = gradient * temperature - own.exp()
            gradient.scatter_add_(1, target, torch.ones_like(target, dtype=gradient.dtype))
            total = apart.sum() * temperature**2 + own.gather(1, target).sum()
            return Added(total * weight, gradient * weight)

        return addend
