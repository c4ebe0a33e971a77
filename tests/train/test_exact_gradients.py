"""One batch, however it is cut into micro-batches and ranks: the same gradient, to rounding."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ranks import run_ranks
from toys import Numbers, make_objective, reference_gradients
from tutti.config import LayoutConfig
from tutti.parallel import Arithmetic, apply_layout, arrange
from tutti.sync import AllReduce, DistributedDataParallelAllReduce, Ledger, Place, StaticTransport, share
from tutti.train.feed import Feed
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

BATCH, SEED = 28, 5


def wanted_samples() -> list[int]:
    """The first batch of the global order, by the feed of one process."""
    portion = Feed(Numbers(), SEED, torch.device("cpu")).load([(0, BATCH)], BATCH, 1)
    return [number for _, numbers in portion.ids for number in numbers]


def gradients_on(rank: int, ranks: int, micro_batch: int, kind: str, clip: float | None) -> dict[str, Tensor]:
    group = dist.group.WORLD if ranks > 1 else None
    policy_class = DistributedDataParallelAllReduce if kind == "ddp" else AllReduce
    # torch's DDP refuses parameters without a gradient; Tutti's buckets take them.
    objective, parts = make_objective(unused=kind != "ddp"), 2 if kind == "shard" else 1
    world = arrange(LayoutConfig(shard=parts), torch.device("cpu"), rank // parts, ranks // parts)
    split = apply_layout(objective, world, Arithmetic())
    policy = policy_class(
        StaticTransport(world.peers),
        Place(rank // parts, ranks // parts, rank % parts, parts),
        Ledger(),
        BATCH,
        bucket_bytes=100,
        everyone=group,
    )
    accumulator = Accumulator(
        split,
        policy,
        nominal_targets=BATCH,
        clip=clip,
        context=nullcontext(),
        loss_scale=LossScale("fp32"),
        seed=0,
    )
    feed = Feed(Numbers(), SEED, torch.device("cpu"))
    gradients: dict[str, Tensor] = {}
    for step in (1, 2):  # twice: nothing of a former step may remain
        policy.ledger.cursor = 0
        mine = share(policy.samples(step), rank % parts, parts)
        slots = -(-BATCH // ranks // micro_batch) + 1 if parts > 1 else 0
        portion = feed.load(mine, micro_batch, slots)
        result = accumulator.run(portion.micro_batches, tokens=0, key=0, stop=False)
        assert result.totals.targets == sum(i % 3 for i in wanted_samples())
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            full: Any = parameter.grad
            gradients[name] = full.full_tensor() if hasattr(full, "full_tensor") else full.clone()
    return gradients


def check(results: list[dict[str, Tensor]]) -> None:
    expected = reference_gradients(Numbers(), make_objective(), wanted_samples())
    for gradients in results:
        for name, gradient in expected.items():
            torch.testing.assert_close(
                gradients[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name in gradients.keys() - expected.keys():
            assert gradients[name].abs().max() == 0, f"{name} has no gradient on one process"


@pytest.mark.parametrize("micro_batch", [28, 14, 7, 4])
def test_micro_batches_change_nothing(micro_batch: int) -> None:
    check([gradients_on(0, 1, micro_batch, "buckets", None)])


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "kind"),
    [
        (2, 14, "buckets"),
        (2, 3, "buckets"),
        (3, 4, "buckets"),
        (3, 28, "buckets"),
        (2, 5, "ddp"),
        (3, 4, "ddp"),
        (2, 4, "shard"),
        (4, 3, "shard"),
    ],
)
def test_ranks_and_lowerings_change_nothing(ranks: int, micro_batch: int, kind: str) -> None:
    check(run_ranks(ranks, gradients_on, ranks, micro_batch, kind, None))


@pytest.mark.parametrize("kind", ["buckets", "shard"])
def test_clipping_sees_the_whole_gradient(kind: str) -> None:
    clip = 0.01
    for gradients in run_ranks(2, gradients_on, 2, 4, kind, clip):
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        torch.testing.assert_close(norm, torch.tensor(clip), rtol=1e-3, atol=0)
