"""Communication starts while backward is still running: told by the order of what happens, not by clocks."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ranks import run_ranks
from toys import MaskedSquares
from tutti.parallel import Split, World
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.sync.transport import Wait
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

LAYERS, WIDTH = 6, 8


class Diary(StaticTransport):
    """Notes when an all-reduce starts, and the size of its buffer."""

    def __init__(self, group: dist.ProcessGroup | None, happened: list[str]) -> None:
        super().__init__(group)
        self._happened = happened

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        self._happened.append(f"all-reduce of {tensor.numel()}")
        return super().start_all_reduce(tensor)


def what_happens(rank: int) -> list[str]:
    """One step of two micro-batches: each gradient's end, each all-reduce's start, each backward's end, in order."""
    torch.manual_seed(0)
    objective = MaskedSquares(nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))))
    happened: list[str] = []
    for number, parameter in enumerate(objective.parameters()):
        parameter.register_post_accumulate_grad_hook(
            lambda _, layer=number: happened.append(f"gradient of layer {layer}")
        )
    policy = AllReduce(
        Diary(dist.group.WORLD, happened),
        Place(rank, 2),
        Ledger(),
        batch=8,
        bucket_bytes=2 * 4 * WIDTH * WIDTH,  # two layers a bucket
        everyone=dist.group.WORLD,
    )
    accumulator = Accumulator(
        Split(objective, World.alone()),
        policy,
        nominal_targets=8,
        clip=None,
        context=nullcontext(),
        loss_scale=LossScale("fp32"),
        seed=0,
    )
    batch = {"x": torch.randn(2, WIDTH), "y": torch.randn(2, WIDTH), "counts": torch.ones(2)}
    accumulator.run([batch, batch], tokens=2, key=0, stop=False)
    return happened


def test_buckets_start_inside_the_last_backward() -> None:
    gradients = [f"gradient of layer {layer}" for layer in reversed(range(LAYERS))]
    bucket = f"all-reduce of {2 * WIDTH * WIDTH}"
    last = [gradients[0], gradients[1], bucket, gradients[2], gradients[3], bucket, *gradients[4:], bucket]
    for happened in run_ranks(2, what_happens):
        # The first micro-batch only adds up; in the second each bucket goes as soon as its gradients are complete.
        assert happened == [*gradients, *last]
