"""From a model that knows one device to one that is split over the ranks of a replica.

One function, one fixed order, so that it can be read what happens to a model:

    cut the pipeline → per stage: tensor → context → recompute → compile → shard

All of it on the meta device, for models that have a blueprint; `load` then fills what is left for this rank.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from tutti.core import Objective
from tutti.models import Blueprint, all_blocks, find_blocks
from tutti.parallel.context import swap_in_attention, take_piece
from tutti.parallel.heads import cut_with_head
from tutti.parallel.load import by_name, fill_pieces, make_room, tied_names
from tutti.parallel.offload import MappedFiles, keep_activations, keep_gradients
from tutti.parallel.pipeline import Pipeline, StageObjective
from tutti.parallel.recompute import recompute_blocks
from tutti.parallel.split import Copies, Split, StagedObjective, Stages
from tutti.parallel.stages import StandIn, cut_stage, first_blocks, outline
from tutti.parallel.tensor import (
    CutMatrices,
    TensorPlan,
    cut_matrices,
    cut_sequence,
    cut_vocabulary,
    find_plan,
)
from tutti.parallel.vocabulary import VocabularyLoss
from tutti.parallel.world import World
from tutti.tasks import CausalLanguageModelling
from tutti.tasks.manner import Manner, head_of


@dataclass(frozen=True)
class Arithmetic:
    """How a split model computes. dtype: of a sharded model's arithmetic; parameters, gradients and their sum stay
    fp32 (None: all fp32). recompute: `none`, `selective` or `full`. offload: `none`, `activations`, `optimizer` or
    `all`; files: where a CPU's offloaded tensors go."""

    dtype: torch.dtype | None = None
    compile: bool = False
    recompute: str = "none"
    offload: str = "none"
    files: MappedFiles | None = None

    def offloads(self, what: str) -> bool:
        """Whether `what` (`activations`, `optimizer`, `parameters`) is kept elsewhere."""
        return self.offload in ("all", what)

    def on_host(self, world: World) -> bool:
        """Whether FSDP keeps an accelerator's parameters, gradients and optimizer in the host's memory."""
        return world.device.type != "cpu" and self.offloads("optimizer")


def apply_layout(
    objective: Objective, world: World, arithmetic: Arithmetic, twin: Callable[[], Any] | None = None
) -> Split:
    """Split any `objective` in place over the ranks of `world` that shard; other ways need a blueprint.

    `twin`: makes a small model of its model's kind, in memory and the same on all ranks, of one that has a head and
    may be split by `tensor` (None: it is of no such kind).

    Raises:
        ModelError: the architecture cannot be split like this; says why.
    """
    cut, choices = CutMatrices(), list[str]()
    if world.layout.tensor > 1:
        assert twin is not None and world.mesh is not None, "refused before a worker starts"
        cut, choices = cut_with_head(objective.model, twin(), world.mesh["tensor"])
    _apply_to_blocks(all_blocks(objective.model), [objective], world, arithmetic)
    split = Split(objective, world, packed=cut.packed, choices=choices)
    parameters = dict(objective.model.named_parameters())
    split.summed = [parameters[name] for name in cut.summed]
    return split


def apply_language_layout(
    blueprint: Blueprint,
    manner: Manner,
    world: World,
    arithmetic: Arithmetic,
    *,
    micro_batch: int,
    sequence: int,
) -> Split:
    """The language model of `blueprint`, cut for this rank and filled with its weights.

    micro_batch: samples that are computed at once; sequence: tokens of a sample (both fixed in a pipeline).

    Raises:
        ModelError: the architecture cannot be split like this; says why.
    """
    layout = world.layout
    twin = functools.cache(blueprint.twin)
    plan = find_plan(twin(), manner, world.mesh["tensor"]) if layout.tensor > 1 and world.mesh else None
    whole: Any = blueprint.lay_out()
    stages: list[_Stage] = []
    if layout.pipeline == 1:
        stages.append(_Stage(0, CausalLanguageModelling(whole, manner), first=True, last=True))
    else:
        around = outline(twin())
        for number, start, stop in stages_of(whole, world):
            model = copy.deepcopy(whole)
            first, last = start == 0, stop == len(find_blocks(model))
            handover = cut_stage(model, around, start, stop)
            stages.append(_Stage(number, StageObjective(model, manner, handover), first=first, last=last))
    twin.cache_clear()
    choices: list[str] = []
    for stage in stages:
        choices += _cut(stage, world, plan)
        _apply_to_blocks(_own_blocks(stage.objective.model), [stage.objective], world, arithmetic)
    split = _put_together(stages, world, tied_names(whole), arithmetic, micro_batch, sequence)
    split.choices = choices[:1]
    room = torch.device("cpu") if arithmetic.on_host(world) else world.device
    mapped = arithmetic.offloads("parameters") and world.device.type == "cpu"
    _load(split, stages, blueprint, room, arithmetic.files if mapped else None)
    return split


@dataclass
class _Stage:
    """A stage while it is being made; the only one where there is no pipeline."""

    number: int
    objective: CausalLanguageModelling
    first: bool
    last: bool
    cut: CutMatrices = field(default_factory=CutMatrices)


def stages_of(whole: Any, world: World) -> list[tuple[int, int, int]]:
    """Number, first block and end of every stage of this rank."""
    starts = first_blocks(whole, world.layout)
    ends = [*starts[1:], len(find_blocks(whole))]
    mine = range(world.at("pipeline"), len(starts), world.layout.pipeline)
    return [(number, starts[number], ends[number]) for number in mine]


def _cut(stage: _Stage, world: World, plan: TensorPlan | None) -> list[str]:
    """Tensor and context. Returns what the user should know."""
    layout, objective, choices = world.layout, stage.objective, list[str]()
    model: Any = objective.model
    if plan is not None:
        assert world.mesh is not None
        mesh = world.mesh["tensor"]
        blocks = _own_blocks(model)
        stage.cut = cut_matrices(model, plan, mesh)
        cut_sequence(blocks[0] if stage.first else None, blocks[-1] if stage.last else None, mesh.get_group())
        head = head_of(model) if stage.last and objective.manner.chunked else None
        if not objective.manner.chunked and model.config.get_text_config(decoder=True).tie_word_embeddings:
            choices.append(
                "the embedding is the head as well, whose logits this architecture changes: layout.tensor leaves both "
                "whole"
            )
        elif not cut_vocabulary(model, mesh, embedding=stage.first, head=head):
            choices.append(
                f"the vocabulary is not divisible by layout.tensor = {layout.tensor}: embedding and head stay whole"
            )
        elif head is not None:
            objective.head_loss = VocabularyLoss(mesh.get_group())
    context = world.group("context")
    if context is not None:
        swap_in_attention(model, context)
    objective.take_part = functools.partial(
        take_piece, multiple=layout.context * layout.tensor, piece=world.at("context"), pieces=layout.context
    )
    return choices


def _apply_to_blocks(blocks: list[nn.Module], roots: list[Any], world: World, arithmetic: Arithmetic) -> None:
    """Recompute, compile, shard."""
    recompute_blocks(blocks, arithmetic.recompute)
    if arithmetic.offloads("activations"):
        keep_activations(blocks, world.device, arithmetic.files)
    if arithmetic.compile:
        for block in blocks or roots:
            block.compile()
    if world.data is None:
        return
    sums = None if arithmetic.dtype is None else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=arithmetic.dtype, reduce_dtype=sums)
    again = world.layout.zero == 3
    on_host = arithmetic.on_host(world)
    for module in [*blocks, *roots]:
        fully_shard(
            module,
            mesh=world.data,
            mp_policy=policy,
            reshard_after_forward=again,
            offload_policy=CPUOffloadPolicy() if on_host else OffloadPolicy(),
        )


def _own_blocks(model: nn.Module) -> list[nn.Module]:
    return [block for block in find_blocks(model) if not isinstance(block, StandIn)]


def _put_together(
    stages: list[_Stage],
    world: World,
    tied: dict[str, str],
    arithmetic: Arithmetic,
    micro_batch: int,
    sequence: int,
) -> Split:
    packed = {name: how for stage in stages for name, how in stage.cut.packed.items()}
    layout = world.layout
    if layout.pipeline == 1:
        return Split(stages[0].objective, world, packed=packed)
    multiple = layout.context * layout.tensor
    objectives = [stage.objective for stage in stages]
    pipeline = Pipeline(
        [(stage.number, stage.objective, stage.first, stage.last) for stage in stages],
        world,
        micro_batch=micro_batch,
        piece=-(-sequence // multiple),
        width=objectives[0].model.config.hidden_size,  # type: ignore[union-attr, arg-type]
        dtype=arithmetic.dtype if layout.data > 1 and arithmetic.dtype is not None else torch.float32,
    )
    return Split(StagedObjective(Stages(objectives, tied)), world, pipeline, packed=packed)


def _load(
    split: Split, stages: list[_Stage], blueprint: Blueprint, room: torch.device, files: MappedFiles | None
) -> None:
    """Memory for what is this rank's, filled with its weights; then what is known by object rather than by name."""
    world, tied = split.world, tied_names(blueprint.lay_out())
    for stage in stages:
        make_room(stage.objective, room, files)
        if files is not None:
            keep_gradients(stage.objective.parameters(), files)
    own = by_name((stage.objective.model for stage in stages), tied)
    filled = fill_pieces(own, blueprint.weights(own.__contains__), split.packed, world.layout.tensor)
    assert filled >= set(own), f"nobody filled {sorted(set(own) - filled)[:5]}"
    for stage in stages:
        parameters = dict(stage.objective.model.named_parameters())
        split.summed += [parameters[name] for name in stage.cut.summed]
    if world.layout.pipeline > 1 and tied:
        _join_copies(split, stages, tied)


def _join_copies(split: Split, stages: list[_Stage], tied: dict[str, str]) -> None:
    """A weight that the first and the last stage share: both compute a summand of its gradient."""
    group = _ends_of_pipeline(split.world)
    for stage in stages:
        parameters = dict(stage.objective.model.named_parameters())
        for second, first in tied.items():
            if stage.first and first in parameters and not stage.last:
                split.copies.append(Copies(parameters[first], group, leads=True))
            if stage.last and second in parameters and first not in parameters:
                split.copies.append(Copies(parameters[second], group, leads=False))


def _ends_of_pipeline(world: World) -> dist.ProcessGroup:
    """The first and the last rank of this rank's pipeline; every rank of the world has to ask at the same time."""
    layout = world.layout
    mine: dist.ProcessGroup | None = None
    width = layout.data * layout.tensor
    for replica in range(1 if world.elastic else world.replicas):
        for column in range(width):
            start = replica * world.parts + column
            ranks = [start, start + (layout.pipeline - 1) * width]
            group = dist.new_group(ranks)
            if dist.get_rank() % width == column and dist.get_rank() // world.parts == replica:
                mine = group
    assert mine is not None
    return mine


def undo_compile(objective: nn.Module) -> None:
    """Forget compilation, after it failed."""
    torch._dynamo.reset()
    for module in objective.modules():
        module._compiled_call_impl = None
