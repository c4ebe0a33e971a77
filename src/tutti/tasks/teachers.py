"""Learning from models that know already: what they think of a batch, beside what its labels say.

    w T² Σ KL(p_T ‖ p) + (1 − w) ℓ + h L      (Hinton et al. 2015, arXiv 1503.02531)

p and p_T: softened by the temperature T; p_T is the mean over the teachers. `reverse`: KL(p ‖ p_T) instead, which seeks
one of what teachers think likely rather than all of it. L, of one teacher: how unlike last layers are (`attention`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutti.config.task import DistilConfig
from tutti.core import Batch, LossSum, Objective
from tutti.tasks.attention import LastAttention, relations_apart


class Thinker(Objective):
    """An objective whose model thinks something of each target, so it can teach and be taught."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._beside = 0.0
        #: Who teaches the model, beside the labels.
        self.teachers: Teachers | None = None

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """What the model says, fp32."""

    @abstractmethod
    def chances(self, logits: Tensor, batch: Batch) -> Tensor:
        """Log probabilities [targets, choices] of what is asked."""

    def added(self) -> float:
        beside, self._beside = self._beside, 0.0
        return beside

    def taught(self, loss: LossSum, logits: Tensor, batch: Batch) -> LossSum:
        """`loss`, with what its teachers have to say while the model trains."""
        if not self.training or self.teachers is None:
            return loss
        addition = self.teachers.addition(self, logits, batch, loss)
        self._beside += float(addition.detach())
        return LossSum(loss.total + addition, loss.targets)


class Teachers:
    """Models with the same task, as objectives of their own. They are no part of the model that learns."""

    def __init__(self, objectives: Sequence[Thinker], config: DistilConfig) -> None:
        self._objectives = [objective.requires_grad_(False).eval() for objective in objectives]
        self.weight, self._temperature, self._reverse = config.weight, config.temperature, config.reverse
        self._hidden = config.hidden
        self._theirs: LastAttention | None = None
        self._own: LastAttention | None = None

    @torch.no_grad()
    def chances(self, batch: Batch) -> Tensor:
        """Log of the mean of what they think, softened, [targets, choices]."""
        device = next(iter(batch.values())).device
        told = []
        for objective in self._objectives:
            objective.to(device)
            told.append(objective.chances(objective.logits(batch) / self._temperature, batch))
        return torch.stack(told).logsumexp(0) - math.log(len(told))

    @property
    def models(self) -> list[nn.Module]:
        """The teachers' models."""
        return [objective.model for objective in self._objectives]

    def look_into(self, learner: list[nn.Module], teacher: list[nn.Module]) -> None:
        """Have the last of the blocks of the model that learns, and of its teacher's, watched."""
        self._own, self._theirs = LastAttention(learner), LastAttention(teacher)

    def apart(self, learner: Thinker, logits: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        """T² Σ KL between teachers and learner, as a sum over targets."""
        theirs = self.chances(batch)
        own = learner.chances(logits / self._temperature, batch)
        one, other = (own, theirs) if self._reverse else (theirs, own)
        divergence = (one.exp() * (one - other)).sum()
        return divergence * self._temperature**2 * targets / max(1, len(own))

    def addition(self, learner: Thinker, logits: Tensor, batch: Batch, loss: LossSum) -> Tensor:
        """What makes the `loss` of `batch` one with teachers: w (T² Σ KL − ℓ) + h L."""
        apart = self.apart(learner, logits, batch, loss.targets)
        return self.weight * (apart - loss.total) + self.hidden_apart(batch, loss.targets)

    def hidden_apart(self, batch: Batch, targets: Tensor) -> Tensor:
        """h L, scaled to a sum over targets; after `apart`, of the same batch."""
        if self._own is None or self._theirs is None:
            return targets.new_zeros((), dtype=torch.float32)
        mask = batch["attention_mask"]
        unlike = relations_apart(self._theirs.take(), self._own.take(), mask)
        return self._hidden * unlike * targets / len(mask)
