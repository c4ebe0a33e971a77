"""Terms that are added to the loss of every target: what they are given, and what they have to give.

Logits never exist as a whole (`chunked_loss`), so a term is asked chunk by chunk, where they are in memory, and
answers with its value and its gradient with respect to them. Like the loss itself it is a *sum* over targets, which
is divided once by all targets of the step: so micro-batching, packing and unequal replicas change nothing but
rounding. What it needs from elsewhere (another model's predictions, a second pass) it gets hold of in `of`, before
the model runs on the batch.

Shapes: B samples, S tokens, n targets of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tutti.core import Batch


class Added(NamedTuple):
    """What a term adds to the loss of some targets: its sum over them, and d sum / d logits [n, V]."""

    total: Tensor
    gradient: Tensor


#: (places [n] int64, logits [n, V]) → what is added, or None for nothing. A place is a position of the batch, counted
#: along its rows (b · S + s), however the model was given its samples. `logits` must be left as they are.
Addend = Callable[[Tensor, Tensor], Added | None]


class LossTerm(Protocol):
    """Something that is added to the loss while a model trains."""

    def of(self, batch: Batch) -> Addend | None:
        """What is to be added for the targets of `batch`; None: nothing."""
        ...


class Tally:
    """An addend that keeps the sum of what it added, in float64."""

    def __init__(self, addend: Addend, device: torch.device) -> None:
        self._addend = addend
        self.total = torch.zeros((), dtype=torch.float64, device=device)

    def __call__(self, places: Tensor, logits: Tensor) -> Added | None:
        added = self._addend(places, logits)
        if added is not None:
            self.total += added.total.double()
        return added


def added_to_whole_logits(addend: Addend, places: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """What `addend` adds for the `targets` (rows of `logits` [N, V] and of `places` [N]), a scalar that has its
    gradient: for models whose logits exist as a whole."""
    added = addend(places[targets], logits.detach()[targets])
    if added is None:
        return logits.new_zeros(())
    total: Tensor = _GivenGradient.apply(logits, targets, *added)  # type: ignore[no-untyped-call]
    return total


class _GivenGradient(torch.autograd.Function):
    """A value of some rows of a tensor, whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor, total: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(torch.zeros_like(tensor).index_copy_(0, rows, gradient.to(tensor.dtype)))
        return total.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None
