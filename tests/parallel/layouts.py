"""A batch through a layout: its loss, its gradient, and a few steps of training."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from families import VOCABULARY, blueprint
from torch import Tensor

from tutti.config import LayoutConfig, TrainConfig
from tutti.core import Batch
from tutti.parallel import Arithmetic, Split, World, apply_language_layout, arrange
from tutti.parallel.load import unpack_pieces
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.tasks import find_manner
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

SEQUENCE, BATCH = 16, 8


@dataclass(frozen=True)
class Case:
    """One family in one layout."""

    family: str
    layout: dict[str, Any]
    micro_batch: int = 2
    how: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    steps: int = 0
    accelerator: bool = False

    @property
    def config(self) -> LayoutConfig:
        return LayoutConfig(**self.layout)

    def __str__(self) -> str:
        return "-".join(
            [self.family, *(f"{name}{value}" for name, value in (self.layout | self.how).items())]
        )


@dataclass
class Result:
    """What a rank has of a case; `gradients`: whole, by the names of the whole model."""

    losses: list[float]
    norm: float
    gradients: dict[str, Tensor]


def _rows() -> tuple[Tensor, list[list[int]]]:
    """Ids [B, S] and the lengths of the documents in each row; every other row holds two."""
    ids = torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(3))
    return ids, [[5 + row, SEQUENCE - 5 - row] if row % 2 == 0 else [SEQUENCE] for row in range(BATCH)]


def documents() -> list[list[int]]:
    """The batch as plain documents."""
    ids, lengths = _rows()
    return [doc.tolist() for row, cuts in zip(ids, lengths, strict=True) for doc in row.split(cuts)]


def batches(micro_batch: int, share: int, shares: int, device: torch.device) -> list[Batch]:
    """This share of the batch, packed, in micro-batches."""
    ids, lengths = _rows()
    labels = ids.roll(-1, 1)
    positions = torch.stack([torch.cat([torch.arange(length) for length in cuts]) for cuts in lengths])
    for row, cuts in enumerate(lengths):
        labels[row, torch.tensor(cuts).cumsum(0) - 1] = -100
    rows = torch.arange(BATCH).chunk(shares)[share]
    whole = {"input_ids": ids[rows], "labels": labels[rows], "position_ids": positions[rows]}
    return [
        {name: tensor[first : first + micro_batch].to(device) for name, tensor in whole.items()}
        for first in range(0, len(rows), micro_batch)
    ]


def lay_out(rank: int, case: Case) -> tuple[Split, World]:
    """The case's model on this rank."""
    config = case.config
    size = dist.get_world_size() if dist.is_initialized() else 1
    device = torch.device("cpu")
    if case.accelerator:
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    world = arrange(config, device, rank // config.ranks, size // config.ranks)
    plan = blueprint(case.family)
    manner = find_manner(plan.twin())
    split = apply_language_layout(
        plan, manner, world, Arithmetic(**case.how), micro_batch=case.micro_batch, sequence=SEQUENCE
    )
    if case.dtype != torch.float32:
        split.objective.to(case.dtype)
    return split, world


def run_case(rank: int, case: Case) -> Result:
    """Loss, norm and gradient of the first step, and the losses of `case.steps` more."""
    split, world = lay_out(rank, case)
    place = Place(world.replica, world.replicas, world.part, world.parts)
    policy = AllReduce(
        StaticTransport(world.peers), place, Ledger(), BATCH, bucket_bytes=10_000, everyone=world.everyone
    )
    accumulator = Accumulator(
        split, policy, nominal_targets=BATCH * SEQUENCE, clip=None, context=nullcontext(),
        loss_scale=LossScale("fp32"), seed=0,
    )  # fmt: skip
    shard = case.config.shard
    place_in_batch = world.replica * shard + world.at("shard")
    mine = batches(case.micro_batch, place_in_batch, world.replicas * shard, world.device)
    result = accumulator.run(mine, tokens=0, key=0, stop=False)
    whole = whole_gradients(split)
    losses = [result.loss]
    if case.steps:
        decay = {"weight_decay": 0.1, "betas": (0.9, 0.95)}
        optimizers = build_optimizers(split.objective.model, TrainConfig(**decay), 1e-3)
        for group in optimizers.optimizers[0].param_groups:
            group["weight_decay"] = 0.1  # plain AdamW decays norms as well
        for _ in range(case.steps):
            optimizers.step()
            losses.append(accumulator.run(mine, tokens=0, key=0, stop=False).loss)
    return Result(losses, result.norm, whole)


def whole_gradients(split: Split) -> dict[str, Tensor]:
    """Every gradient of the replica, gathered over its ranks."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in split.objective.named_parameters():
        name, gradient = name.removeprefix("model."), parameter.grad
        if gradient is None:  # a pooler that nobody asks
            continue
        full: Any = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()
        if name in split.packed:
            full = unpack_pieces(full, *split.packed[name], split.world.layout.tensor)
        gradients[name] = full.cpu()
    if split.world.inside is None:
        return gradients
    parts: list[Any] = [None] * split.world.inside.size()
    dist.all_gather_object(parts, gradients, group=split.world.inside)
    return {name: gradient for part in parts for name, gradient in part.items()}


def run_cases(rank: int, cases: list[Case]) -> list[Result]:
    """One after the other in the same processes: starting them costs more than running a case."""
    return [run_case(rank, case) for case in cases]
