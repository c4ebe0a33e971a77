"""The loss of a model that is asked about rows, and three ways to keep it from learning few examples by heart.

With the loss ℓ(z) of logits z (a sum over targets, as always):

    label smoothing   in ℓ itself: the label has the chance 1 − ε, the rest is spread over all
    R-Drop            two passes with different dropout: ½ ℓ(z₁) + ½ ℓ(z₂) + ¼ α Σ (KL(p₁‖p₂) + KL(p₂‖p₁))
                      (Wu et al. 2021, arXiv 2106.14448, halved, so that ℓ keeps its size)
    FGM               ½ ℓ(z) + ½ ℓ(z′): z′ with ε g/‖g‖ added to the embeddings of each row, g = ∂ℓ(z)/∂embeddings
                      (Miyato et al. 2017, arXiv 1605.07725)

All are sums over rows, so micro-batches and unequal replicas change nothing but rounding. Evaluation knows none of it.

Shapes: B rows, S tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutti.config.task import RegulariseConfig
from tutti.core import Batch, LossSum
from tutti.tasks.teachers import Thinker


class Scored(Thinker):
    """A loss of the logits that a model gives to a batch."""

    def __init__(self, model: nn.Module, regularise: RegulariseConfig | None = None) -> None:
        super().__init__(model)
        self.regularise = regularise or RegulariseConfig()

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> LossSum:
        """Sum of the loss over the targets of `batch`, and their number."""

    def answer_with(self, logits: Tensor, batch: Batch) -> None:
        """Note what the logits say, if somebody wants to know."""
        self.answer(logits)

    def say(self, batch: Batch) -> None:
        self.answer_with(self.logits(batch), batch)

    def forward(self, batch: Batch) -> LossSum:
        """Sum of the loss over the targets of `batch`, and their number."""
        if self.training and self.regularise.r_drop:
            return self._twice(batch)
        if self.training and self.regularise.adversarial:
            return self._attacked(batch)
        logits = self.logits(batch)
        self.answer_with(logits, batch)
        return self.taught(self.loss(logits, batch), logits, batch)

    def _twice(self, batch: Batch) -> LossSum:
        doubled = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
        one, other = self.logits(doubled).chunk(2)
        first, second = self.loss(one, batch), self.loss(other, batch)
        p, q = self.chances(one, batch), self.chances(other, batch)
        apart = ((p.exp() - q.exp()) * (p - q)).sum()  # KL(p‖q) + KL(q‖p)
        # Of a target as its loss is: the mean of what it is made of (several labels, a start and an end).
        addition = self.regularise.r_drop / 4 * apart * (first.targets / max(1, len(p)))
        self._beside += float(addition.detach())
        return LossSum((first.total + second.total) / 2 + addition, first.targets)

    def _attacked(self, batch: Batch) -> LossSum:
        table: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        seen: list[Tensor] = []

        def see(embedded: Tensor) -> Tensor:
            # Where the table does not learn, nothing below asks for its gradient.
            seen.append(embedded if embedded.requires_grad else embedded.detach().requires_grad_())
            return seen[0]

        with _hooked(table, see):
            clean = self.loss(self.logits(batch), batch)
        # As every other way back: autocast is for the way there alone.
        with torch.autocast(clean.total.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(clean.total, seen[0], retain_graph=True)
        size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
        push = (self.regularise.adversarial * gradient / size).detach()
        with _hooked(table, lambda embedded: embedded + push):
            pushed = self.loss(self.logits(batch), batch)
        self._beside += float((pushed.total - clean.total).detach()) / 2
        return LossSum((clean.total + pushed.total) / 2, clean.targets)


@contextmanager
def _hooked(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While this is open `module` gives what `change` makes of its output (None: the output itself)."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()
