"""Of a table of words replicas exchange the rows that anybody read, and end with the sum of all of it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ranks import run_ranks
from tutti.config.agreement import SyncConfig
from tutti.core import Batch, LossSum, Objective
from tutti.models import add_rows_only
from tutti.parallel import Split, World
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.sync.summing import Summing
from tutti.train.precision import LossScale
from tutti.train.step import Accumulator

WORDS, WIDTH = 60, 4


class Squares(Objective):
    """Σ (mean of a row's words − y)²."""

    def forward(self, batch: Batch) -> LossSum:
        total = (self.model(batch["ids"]).mean(1) - batch["y"]).square().sum()
        return LossSum(total, torch.tensor(len(batch["y"])))

    def count_targets(self, batch: Batch) -> int:
        return len(batch["y"])


def batch_of(rank: int, words: int) -> dict[str, Tensor]:
    """Of the first `words` words: some of few, nearly all of many."""
    dice = torch.Generator().manual_seed(rank)
    return {
        "ids": torch.randint(words, (2, words // 2), generator=dice),
        "y": torch.randn(2, WIDTH, generator=dice),
    }


def learned(rank: int, ranks: int, words: int, codec: str) -> tuple[list[Tensor], int]:
    """The gradients of two steps of `ranks` replicas, and what this one sent in the second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH))
    add_rows_only(model)
    objective = Squares(model)
    group = dist.group.WORLD if ranks > 1 else None
    transport = StaticTransport(group)
    policy = AllReduce(
        transport,
        Place(rank, ranks),
        Ledger(),
        batch=4,
        bucket_bytes=64,
        everyone=group,
        summing=Summing.of(SyncConfig.model_validate({"codec": codec}), transport),
    )
    accumulator = Accumulator(
        Split(objective, World.alone()),
        policy,
        nominal_targets=4,
        clip=None,
        context=nullcontext(),
        loss_scale=LossScale("fp32"),
        seed=0,
    )
    sent = 0
    for step in range(2):
        mine = [batch_of(10 * step + part, words) for part in ([rank] if ranks > 1 else [0, 1])]
        sent = transport.meter.sent
        accumulator.run(mine, tokens=2, key=0, stop=False)
    return [p.grad.clone() for p in objective.parameters() if p.grad is not None], transport.meter.sent - sent


@pytest.mark.parametrize(("words", "codec"), [(6, "fp32"), (WORDS, "fp32"), (6, "bf16"), (6, "int8")])
def test_the_sum_is_that_of_one_process(words: int, codec: str) -> None:
    alone, _ = learned(0, 1, words, "fp32")
    lost = {"fp32": 1e-6, "bf16": 1e-2, "int8": 3e-2}[codec]
    (first, sent), (second, _) = run_ranks(2, learned, 2, words, codec)
    for mine, theirs, whole in zip(first, second, alone, strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, whole, rtol=lost, atol=lost)
    if codec == "fp32":
        rest, table = 4 * (WIDTH + 1) * WIDTH, 4 * WORDS * WIDTH
        assert (sent < rest + 4 * WORDS + table / 4) == (words == 6)
