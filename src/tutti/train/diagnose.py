"""When numbers go bad: the step, and the first layer whose output or gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tutti.core.errors import TrainingError
from tutti.core.types import Batch
from tutti.sync.policy import local_part

#: A loss so many times the largest of the first ones, so many steps in a row, is an explosion. An untrained
#: model's loss is about the worst that a model which learns will see again; single bad batches are no explosion.
_EXPLOSION_FACTOR, _EXPLOSION_STEPS, _FIRST_STEPS = 2.0, 5, 10


class LossGuard:
    """Watches the losses of a run for an explosion."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._high_steps = 0

    def exploded(self, loss: float) -> bool:
        """Whether with `loss` the run has left every bound."""
        if len(self._first) < _FIRST_STEPS:
            self._first.append(loss)
            return False
        top = max(self._first)  # may be below zero: some losses are
        high = loss > top + (_EXPLOSION_FACTOR - 1) * abs(top)
        self._high_steps = self._high_steps + 1 if high else 0
        return self._high_steps >= _EXPLOSION_STEPS


def largest_gradient(objective: nn.Module) -> str:
    """The parameter whose gradient is the largest on this rank: where an explosion is worst."""
    norms = {
        name: float(local_part(parameter.grad).norm())
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    return _bare(max(norms, key=norms.__getitem__)) if norms else "no parameter"


def first_bad_layer(
    objective: nn.Module, batches: Sequence[Batch], context: AbstractContextManager[None]
) -> tuple[str, bool]:
    """Where non-finite numbers first appear: in a parameter, else in an output of the forward pass, else a gradient;
    and whether that is certainly of this rank: gradients are sums over all."""
    for name, parameter in objective.named_parameters():
        if not torch.isfinite(local_part(parameter.detach())).all():
            return f"parameter {_bare(name)} is not finite", True
    found = _first_bad_output(objective, batches, context)
    if found is not None:
        return f"output of layer {_bare(found)} is not finite", True
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None and not torch.isfinite(local_part(parameter.grad)).all():
            return f"gradient of {_bare(name)} is not finite", False
    return "no single layer: the sum over ranks is not finite", False


def _first_bad_output(
    objective: nn.Module, batches: Sequence[Batch], context: AbstractContextManager[None]
) -> str | None:
    bad: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            floats = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
            if not bad and not all(bool(torch.isfinite(t).all()) for t in floats):
                bad.append(name)

        return hook

    # Hooks run when a module returns, so the innermost bad module comes first.
    handles = [module.register_forward_hook(watch(name)) for name, module in objective.named_modules()]
    try:
        with torch.no_grad(), context:
            for batch in batches:
                objective(batch)
    finally:
        for handle in handles:
            handle.remove()
    return (bad[0] or "the loss") if bad else None


def bad_numbers(step: int, loss: float, norm: float, where: str, *, here: bool = True) -> TrainingError:
    """The error of a step whose numbers cannot be used. `here`: see `TrainingError`."""
    error = TrainingError(
        f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; {where}",
        "lower train.learning_rate or lengthen train.warmup, then go on from the last checkpoint with --resume; "
        "with precision fp16, try bf16 or fp32",
    )
    error.here = here
    return error


def _bare(name: str) -> str:
    return name.removeprefix("module.").removeprefix("model.") or "the whole model"
