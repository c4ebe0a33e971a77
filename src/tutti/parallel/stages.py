"""Cutting a model into stages of a pipeline, before it is in memory.

A stage is the whole model in which everything that belongs to other stages has been replaced by stand-ins that
hold no parameters. So the architecture's own code runs in every stage: it makes masks, positions and whatever
else blocks are given, and what it computes before the first block is thrown away where the activations of the
stage before arrive instead. Names of parameters stay what they were.

Shapes: B samples, S tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutti.config.layout import LayoutConfig
from tutti.models import find_blocks, units
from tutti.tasks.manner import head_of


@dataclass(frozen=True)
class Outline:
    """What stands around the blocks of an architecture, found by running its twin.

    before: parts (names) that are called before the first block, and the width of what they give. after: parts that
    are called after the last one. tuples: blocks return tuples whose first item is the hidden states.
    """

    before: dict[str, int]
    after: frozenset[str]
    tuples: bool


def outline(twin: Any) -> Outline:
    """Run `twin` once and see in which order its parts are called."""
    blocks = find_blocks(twin)
    inside = {id(block) for block in blocks}
    begun: list[bool] = []
    before: dict[str, int] = {}
    after: set[str] = set()
    tuples: list[bool] = []
    handles = []

    def watch(name: str) -> Any:
        def called(_: nn.Module, __: Any, output: Any) -> None:
            if begun:
                after.add(name)
            elif isinstance(output, Tensor):
                before[name] = output.shape[-1]

        return called

    for name, unit in units(twin):
        if id(unit) not in inside and any(True for _ in unit.parameters()):
            handles.append(unit.register_forward_hook(watch(name)))
    handles.append(blocks[0].register_forward_hook(lambda *called: begun.append(True)))
    handles.append(
        blocks[0].register_forward_hook(lambda *called: tuples.append(isinstance(called[2], tuple)))
    )
    try:
        with torch.no_grad():
            twin(input_ids=torch.arange(4)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Outline(before, frozenset(after), tuples[0])


def share_out(costs: Sequence[float], stages: int, first: float, last: float) -> list[int]:
    """First block of every stage, so that the most loaded stage has as little as possible.

    `costs` of the blocks; `first` and `last`: what comes before the first block and after the last one. Every stage
    gets a block. (A partition of a line, by dynamic programming over (stage, block).)
    """
    count = len(costs)
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    def load(stage: int, start: int, stop: int) -> float:
        own = sums[stop] - sums[start]
        return own + (first if stage == 0 else 0.0) + (last if stage == stages - 1 else 0.0)

    # best[stop]: (heaviest load, starts) of the first `stage` stages over the first `stop` blocks.
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for stage in range(stages):
        following: dict[int, tuple[float, list[int]]] = {}
        for stop in range(stage + 1, count - (stages - stage - 1) + 1):
            options = [
                (max(worst, load(stage, start, stop)), [*starts, start])
                for start, (worst, starts) in best.items()
                if start < stop
            ]
            if options:
                following[stop] = min(options, key=lambda option: option[0])
        best = following
    return best[count][1]


def first_blocks(model: Any, layout: LayoutConfig) -> list[int]:
    """First block of every stage of `model` in `layout`, balanced by what multiplies a token; what is looked up costs
    next to nothing."""
    count = layout.pipeline * (layout.stages_per_rank if layout.schedule == "interleaved" else 1)
    costs = [float(sum(p.numel() for p in block.parameters())) for block in find_blocks(model)]
    head = head_of(model)
    return share_out(costs, count, first=0.0, last=float(head.weight.numel()) if head is not None else 0.0)


class Handover:
    """Where a stage keeps what arrived from the stage before, and what goes on to the next."""

    def __init__(self, *, last: bool) -> None:
        self.last = last
        self.received: Tensor | None = None
        self.result: Tensor | None = None


def cut_stage(model: Any, outline: Outline, start: int, stop: int) -> Handover:
    """Leave of `model`, on the meta device, blocks `start` to `stop` − 1 and what belongs to them, in place."""
    blocks = find_blocks(model)
    handover = Handover(last=stop == len(blocks))
    parts = dict(units(model))
    for name, width in outline.before.items():
        if start > 0:
            _replace(model, name, _Nothing(parts[name], width))
            model.get_input_embeddings = _nobody
    for name in outline.after:
        if stop < len(blocks):
            _replace(model, name, _PassOn(parts[name], False))
            model.get_output_embeddings = _nobody
    for number, block in enumerate(blocks):
        if start <= number < stop:
            continue
        name = next(name for name, module in model.named_modules() if module is block)
        if number == start - 1:
            _replace(model, name, _Arrival(block, outline.tuples, handover))
        elif number == stop:
            _replace(model, name, _Departure(block, outline.tuples, handover))
        else:
            _replace(model, name, _PassOn(block, outline.tuples))
    return handover


def _replace(model: nn.Module, name: str, stand_in: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, stand_in)


def _nobody() -> None:
    """The embedding, or the head, of a stage that has none."""


class StandIn(nn.Module):
    """Has the plain attributes of what it stands in for: loops over blocks look at some."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        for name, value in vars(original).items():
            if not name.startswith("_") and isinstance(value, str | int | float | bool | None):
                self.__dict__[name] = value


class _Nothing(StandIn):
    """Stands in for an embedding: zeros, which nobody will look at."""

    def __init__(self, original: nn.Module, width: int) -> None:
        super().__init__(original)
        self._width = width

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """[B, S, D] for whatever it is given with B and S."""
        first = next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
        shape = first.shape if not first.is_floating_point() else first.shape[:-1]
        return torch.zeros((), device=first.device).expand(*shape, self._width)


class _PassOn(StandIn):
    """Stands in for a block, or a part behind the blocks: gives what it gets."""

    def __init__(self, original: nn.Module, tuples: bool) -> None:
        super().__init__(original)
        self._tuples = tuples

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Its input."""
        return (hidden_states,) if self._tuples else hidden_states


class _Arrival(_PassOn):
    """Stands in for the block before a stage's first: gives what the stage before has sent."""

    def __init__(self, original: nn.Module, tuples: bool, handover: Handover) -> None:
        super().__init__(original, tuples)
        self.handover: Handover = handover

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """What arrived."""
        assert self.handover.received is not None
        return super().forward(self.handover.received)


class StageEnd(Exception):
    """What follows is other stages' work."""


class _Departure(_Arrival):
    """Stands in for the block after a stage's last: keeps what is to be sent on, and ends the forward pass."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Does not return."""
        self.handover.result = hidden_states
        raise StageEnd
