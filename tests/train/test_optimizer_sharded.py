"""Optimizers on a model that FSDP2 sharded over two ranks do what they do in one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ranks import run_ranks
from tutti.config.training import TrainConfig
from tutti.train.optimizer import build_optimizers


def make_model() -> nn.Module:
    """Tall, wide and square matrices, rows that two ranks cannot share evenly, and an embedding."""
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Embedding(9, 6),
        nn.Linear(6, 13),
        nn.Tanh(),
        nn.Linear(13, 6),
        nn.Tanh(),
        nn.Linear(6, 6),
        nn.Linear(6, 3),
    )


def train(model: nn.Module, optimizer: str, steps: int = 3) -> None:
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, weight_decay=0.2), 0.02)
    generator = torch.Generator().manual_seed(12)
    for step in range(steps):
        optimizers.set_learning_rate((step + 1) / steps)
        ids = torch.randint(9, (16,), generator=generator)
        optimizers.zero_grad()
        model(ids).square().mean().backward()  # the same batch on all ranks, so FSDP's mean is the gradient
        optimizers.step()
    if optimizer == "muon":
        for each in optimizers.optimizers:
            for name, entry in get_optimizer_state_dict(model, each)["state"].items():
                weight = dict(model.named_parameters())[name]
                assert all(not v.ndim or v.shape == weight.shape for v in entry.values())
                assert all(
                    isinstance(v, DTensor) == isinstance(weight, DTensor) for v in entry.values() if v.ndim
                )


def sharded(rank: int, optimizer: str) -> dict[str, Tensor]:
    model = make_model()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, optimizer)
    return {name: value.full_tensor().detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_two_shards_equal_one_process(optimizer: str) -> None:
    alone = make_model()
    train(alone, optimizer)
    start = make_model().state_dict()
    for weights in run_ranks(2, sharded, optimizer):
        assert set(weights) == set(start)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, start[name])
