"""One training batch through a layout, and what plain transformers makes of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tutti.config import LayoutConfig
from tutti.core import Batch
from tutti.models.blueprint import Blueprint
from tutti.parallel import Arithmetic, apply_language_layout, arrange
from tutti.parallel.load import unpack_pieces
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.tasks import find_manner
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

VOCABULARY, SEQUENCE, BATCH, SEED = 64, 16, 8, 3


def batches(micro_batch: int, share: int, shares: int) -> list[Batch]:
    """This share of a batch of packed rows of different documents, in micro-batches."""
    dice = torch.Generator().manual_seed(SEED)
    ids = torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=dice)
    positions = torch.arange(SEQUENCE).repeat(BATCH, 1)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    for row in range(0, BATCH, 2):  # every other row holds two documents
        cut = 5 + row
        positions[row, cut:] -= cut
        labels[row, cut - 1] = -100
    rows = torch.arange(BATCH).chunk(shares)[share]
    whole = {"input_ids": ids[rows], "labels": labels[rows], "position_ids": positions[rows]}
    return [
        {name: tensor[first : first + micro_batch] for name, tensor in whole.items()}
        for first in range(0, len(rows), micro_batch)
    ]


def gradients_of(
    rank: int, blueprint: Blueprint, layout: dict[str, Any], micro_batch: int = 2, **how: Any
) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, gradient norm and whole gradients (by the names of the whole model) that a layout gives."""
    config = LayoutConfig(**layout)
    replicas = (dist.get_world_size() if dist.is_initialized() else 1) // config.ranks
    world = arrange(config, torch.device("cpu"), rank // config.ranks, replicas)
    manner = find_manner(blueprint.twin())
    split = apply_language_layout(
        blueprint, manner, world, Arithmetic(**how), micro_batch=micro_batch, sequence=SEQUENCE
    )
    policy = AllReduce(
        StaticTransport(world.peers), Place(world.replica, replicas, world.part, world.parts), Ledger(), BATCH,
        bucket_bytes=10_000, everyone=world.everyone,
    )  # fmt: skip
    accumulator = Accumulator(
        split, policy, nominal_targets=BATCH * SEQUENCE, clip=None, context=nullcontext(),
        loss_scale=LossScale("fp32"), seed=0,
    )  # fmt: skip
    shares = replicas * config.shard
    mine = batches(micro_batch, world.replica * config.shard + world.at("shard"), shares)
    result = accumulator.run(mine, tokens=0, key=0, stop=False)
    gradients: dict[str, Tensor] = {}
    named = getattr(split.objective.model, "canonical_name", lambda name: name)
    for name, parameter in split.objective.model.named_parameters():
        gradient: Any = parameter.grad
        full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()
        if named(name) in split.packed:
            full = unpack_pieces(full, *split.packed[named(name)], config.tensor)
        gradients[named(name)] = full
    if world.inside is None:
        return result.loss, result.norm, gradients
    everybody: list[Any] = [None] * world.inside.size()
    dist.all_gather_object(everybody, gradients, group=world.inside)
    merged = {name: gradient for part in everybody for name, gradient in part.items()}
    return result.loss, result.norm, merged
