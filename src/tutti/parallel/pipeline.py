"""Running a model whose stages lie on different ranks: torch.distributed.pipelining carries activations and
gradients from stage to stage in the order that a schedule says.

Every rank is given all samples of a step; the first stage looks at the tokens, the last one at the labels, and all
at where documents begin. Micro-batches are all of one size: what is missing is filled with rows without targets.

Shapes: B samples of a micro-batch, S tokens, D model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from tutti.core import Batch
from tutti.parallel.stages import Handover, StageEnd
from tutti.parallel.world import World
from tutti.parallel.zero import before_backward
from tutti.tasks import CausalLanguageModelling
from tutti.tasks.chunked_loss import IGNORED
from tutti.tasks.manner import Manner, body_of, run_model


class StageObjective(CausalLanguageModelling):
    """One stage: takes tokens or hidden states, gives hidden states or the loss."""

    def __init__(self, model: nn.Module, manner: Manner, handover: Handover) -> None:
        super().__init__(model, manner)
        self.handover: Handover = handover

    def forward(self, arriving: Tensor, **batch: Tensor) -> Tensor:  # type: ignore[override]
        """`arriving`: hidden states [B, S, D] (first stage: anything). Hidden states [B, S, D], or the loss [1]."""
        rows = self.rows(batch)
        self.handover.received = arriving
        if self.handover.last:
            return self.total(rows).reshape(1)
        with contextlib.suppress(StageEnd):
            run_model(body_of(self.model), rows, self.manner.takes_positions)
        result = self.handover.result
        assert result is not None
        self.handover.result = None
        return result


#: What surrounds a backward pass, given whether it is the last of a step.
Around = Callable[[bool], AbstractContextManager[None]]


class _PlainStage(nn.Module):
    """Hides from torch's schedules that a stage is sharded.

    They would gather it once and reduce its gradients after all backward passes. Left alone, FSDP does in each pass
    what `layout.zero` says, while it runs.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        result: Tensor = self.stage(*inputs, **named)
        return result


class _Stage(PipelineStage):
    """A stage whose owner hears which backward pass completes its gradients."""

    around: Around = staticmethod(lambda _: nullcontext())
    zero = 3

    def backward_one_chunk(self, *inputs: Any, **named: Any) -> None:
        last = named.get("last_backward", False)
        before_backward(self.submod.stage, self.zero, last=last)  # type: ignore[arg-type]
        with self.around(last):
            super().backward_one_chunk(*inputs, **named)


class Pipeline:
    """The stages of this rank among those of the others."""

    def __init__(
        self,
        stages: Sequence[tuple[int, nn.Module, bool, bool]],
        world: World,
        *,
        micro_batch: int,
        piece: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        """`stages`: number, objective, whether it is the first and the last of all. `piece`: tokens of a row that a
        rank has of hidden states. `dtype`: theirs.
        """
        layout = world.layout
        self._group = world.group("pipeline")
        self._world = world
        self._divisor = 1.0
        self._schedules: dict[int, Any] = {}
        self._micro_batch = micro_batch
        self._interleaved = layout.schedule == "interleaved"
        count = layout.pipeline * len(stages)
        hidden = torch.empty(micro_batch, piece, width, dtype=dtype, device="meta", requires_grad=True)
        loss = torch.empty(1, device="meta", requires_grad=True)
        tokens = torch.empty(micro_batch, 1, dtype=torch.int64, device="meta")
        self._stages = [
            _Stage(
                _PlainStage(stage),
                number,
                count,
                world.device,
                input_args=tokens if first else hidden,
                output_args=loss if last else hidden,
                group=self._group,
            )
            for number, stage, first, last in stages
        ]
        for stage in self._stages:
            stage.zero = layout.zero
        self._has_last = any(last for *_, last in stages)

    def train(
        self,
        micro_batches: Sequence[Batch],
        divisor: float,
        context: AbstractContextManager[None],
        around: Around,
    ) -> tuple[float, int]:
        """Forward and backward of all `micro_batches` on their loss ÷ `divisor`, each backward pass within `around`;
        the loss and its targets, on the rank of the last stage (0 on others)."""
        self._divisor = divisor
        for stage in self._stages:
            stage.around = around
        losses: list[Tensor] = []
        batch = self._together(micro_batches)
        with context:
            schedule = self._schedule(len(batch["labels"]) // self._micro_batch)
            first = (batch["input_ids"][:, :1],) if self._stages[0].is_first else ()
            schedule.step(*first, target=batch["labels"][:, :1], losses=losses, return_outputs=False, **batch)
        if not losses:
            return 0.0, 0
        return float(torch.stack(losses).detach().double().sum()) * divisor, self._targets(batch)

    def evaluate(
        self, micro_batches: Sequence[Batch], context: AbstractContextManager[None]
    ) -> tuple[float, int]:
        """The loss of `micro_batches` and its targets, on the rank of the last stage; 0 on others."""
        batch = self._together(micro_batches)
        with context, torch.no_grad():
            schedule = self._schedule(len(batch["labels"]) // self._micro_batch)
            first = (batch["input_ids"][:, :1],) if self._stages[0].is_first else ()
            result = schedule.eval(*first, target=batch["labels"][:, :1], **batch)
        return (float(result.double().sum()), self._targets(batch)) if self._has_last else (0.0, 0)

    def _targets(self, batch: Batch) -> int:
        """Of the piece of each row that this rank's loss is about."""
        context, pieces = self._world.at("context"), self._world.layout.context
        return int((batch["labels"].chunk(pieces, 1)[context] != IGNORED).sum())

    def _together(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """One batch of full micro-batches, as many as the schedule needs: rows without targets fill up what is missing.

        How many there are must not depend on how full they are: FSDP's other ranks make as many.
        """
        ranks = self._world.layout.pipeline
        count = max(len(micro_batches), ranks)
        if self._interleaved:
            count = -(-count // ranks) * ranks
        filled = [self._fill_up(batch) for batch in micro_batches]
        nothing = {name: tensor.clone() for name, tensor in filled[0].items()}
        nothing["labels"].fill_(IGNORED)
        filled += [nothing] * (count - len(filled))
        return {name: torch.cat([batch[name] for batch in filled]) for name in filled[0]}

    def _fill_up(self, batch: Batch) -> dict[str, Tensor]:
        missing = self._micro_batch - len(batch["labels"])
        if not missing:
            return dict(batch)
        more = {name: tensor[-1:].expand(missing, *tensor.shape[1:]) for name, tensor in batch.items()}
        more["labels"] = torch.full_like(more["labels"], IGNORED)
        return {name: torch.cat([tensor, more[name]]) for name, tensor in batch.items()}

    def _schedule(self, micro_batches: int) -> Any:
        if micro_batches not in self._schedules:
            if self._interleaved:
                self._schedules[micro_batches] = ScheduleInterleaved1F1B(
                    list(self._stages), micro_batches, loss_fn=self._loss, scale_grads=False
                )
            else:
                kind = ScheduleGPipe if self._world.layout.schedule == "gpipe" else Schedule1F1B
                self._schedules[micro_batches] = kind(
                    self._stages[0], micro_batches, loss_fn=self._loss, scale_grads=False
                )
        return self._schedules[micro_batches]

    def _loss(self, output: Tensor, _: Tensor) -> Tensor:
        return output.sum() / self._divisor
