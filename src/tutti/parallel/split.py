"""What a layout made of a model, and what a step has to do for it after backward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from tutti.core import Batch, Objective
from tutti.parallel.pipeline import Pipeline
from tutti.parallel.world import World
from tutti.parallel.zero import before_backward
from tutti.sync.policy import local_part


class Stages(nn.ModuleList):
    """The stages of one rank, as what stands in for its model."""

    def __init__(self, stages: Sequence[nn.Module], tied: dict[str, str]) -> None:
        super().__init__(stages)
        self.tied = tied

    def canonical_name(self, name: str) -> str:
        """The name in the whole model of what is called `name` here; tied parameters have their first one's."""
        bare = name.split(".model.", 1)[1] if ".model." in name else name
        return self.tied.get(bare, bare)


class StagedObjective(Objective):
    """Several stages; only a `Pipeline` can run them."""

    def __init__(self, stages: Stages) -> None:
        super().__init__(stages)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """By the names that they have in the whole model."""
        stages = self.model
        assert isinstance(stages, Stages)
        for name, parameter in stages.named_parameters(prefix, recurse, remove_duplicate):
            yield f"model.{stages.canonical_name(name)}", parameter


@dataclass(frozen=True)
class Copies:
    """A parameter that two stages hold, on the ranks of `group`; `leads`: this one is where it is saved from."""

    parameter: nn.Parameter
    group: dist.ProcessGroup
    leads: bool


@dataclass
class Split:
    """`objective` after `apply_layout`.

    summed: parameters whose gradients are summands over the tensor ranks. copies: those that another stage has as
    well. packed: see `CutMatrices`, by canonical name. choices: what the user should know.
    """

    objective: Objective
    world: World
    pipeline: Pipeline | None = None
    summed: list[nn.Parameter] = field(default_factory=list)
    copies: list[Copies] = field(default_factory=list)
    packed: dict[str, tuple[int, int]] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)

    def measure(self, batches: Iterable[Batch], context: AbstractContextManager[None]) -> tuple[float, int]:
        """Loss and targets of `batches`, to be added up over all ranks; nothing is learnt from them."""
        objective = self.objective
        training = objective.training
        objective.eval()
        loss = targets = 0.0
        with torch.no_grad():
            if self.pipeline is not None:
                loss, targets = self.pipeline.evaluate(list(batches), context)
            else:
                for batch in batches:
                    with context:
                        total, counted = objective(batch)
                    loss, targets = loss + float(total), targets + float(counted)
        objective.train(training)
        return (loss, round(targets)) if self.world.counts else (0.0, 0)

    def before_micro_batch(self, *, last: bool) -> None:
        """Say whether the coming micro-batch is the `last` of a step (a pipeline finds out itself)."""
        before_backward(self.objective, self.world.layout.zero, last=last)

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """Add up the gradients that other ranks have summands of."""
        tensor = self.world.group("tensor")
        if tensor is not None:
            _add_up([p.grad for p in self.summed if p.grad is not None], tensor)
        for copy in self.copies:
            if copy.parameter.grad is None:
                copy.parameter.grad = torch.zeros_like(copy.parameter)
            _add_up([copy.parameter.grad], copy.group)

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Euclidean norm of the whole gradient, every parameter counted once however many ranks hold it."""
        squares = torch.zeros((), dtype=torch.float64, device=self.world.device)
        by_copies: dict[int, list[Tensor]] = {}
        counted_elsewhere = {id(copy.parameter) for copy in self.copies if not copy.leads}
        for parameter in self.objective.parameters():
            if parameter.grad is not None and id(parameter) not in counted_elsewhere:
                by_copies.setdefault(self._holders(parameter), []).append(local_part(parameter.grad))
        for copies, gradients in by_copies.items():
            norms = torch.stack(torch._foreach_norm(gradients)).double()
            squares += norms.square().sum() / copies
        if self.world.inside is not None:
            _total_over(squares, self.world.inside)
        norm = float(squares.sqrt())
        return norm if math.isfinite(norm) else math.nan

    def share_in_norm(self, parameter: Tensor) -> float:
        """How much this rank's copy of `parameter` counts in `gradient_norm`, so that all copies count once."""
        elsewhere = any(copy.parameter is parameter and not copy.leads for copy in self.copies)
        return 0.0 if elsewhere else 1 / self._holders(parameter)

    def _holders(self, parameter: Tensor) -> int:
        """Ranks of a stage that hold the same piece."""
        layout, pieces = self.world.layout, 1
        if isinstance(parameter, DTensor):
            for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True):
                pieces *= 1 if isinstance(placement, Replicate | Partial) else size
        return layout.data * layout.tensor // pieces


def _total_over(summand: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_reduce(summand, group=group)


def _add_up(gradients: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    parts = [local_part(gradient) for gradient in gradients]
    if not parts:
        return
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat, group=group)
    for part, result in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
        part.copy_(result.view_as(part))
