"""Adafactor in layouts: the weights of one process, and the same state in a checkpoint."""

from __future__ import annotations

import math
import zlib
from typing import Any

import pytest
import torch
from layouts import Case, lay_out
from torch import Tensor
from torch.distributed.tensor import DTensor

from ranks import run_ranks
from tutti.config import TrainConfig
from tutti.parallel.load import fill_pieces
from tutti.train.checkpoints import gather_state
from tutti.train.checkpoints.packed import Packed
from tutti.train.optimizer import build_optimizers


def in_a_layout(rank: int, case: Case) -> dict[str, Tensor]:
    """Weights and state after three steps, as a checkpoint has them.

    Of gradients that are the same in every layout: those of GPT-2's key biases are nothing but rounding, which
    Adafactor, as AdamW, makes steps of usual size from.
    """
    split, world = lay_out(rank, case)
    optimizers = build_optimizers(split.objective.model, TrainConfig(optimizer="adafactor"), 0.05)
    for step in range(3):
        for name, parameter in split.objective.named_parameters():
            parameter.grad = torch.empty_like(parameter)
            name = name.removeprefix("model.")
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
            gradient = torch.randn(parameter.shape, generator=generator) * (1 + step)
            fill_pieces({name: [parameter.grad]}, [(name, gradient)], split.packed, world.layout.tensor)
        optimizers.step()
    packed = Packed(split.packed, world.layout.tensor)
    live = gather_state(split.objective, optimizers.optimizers)
    taken_apart_and_put_together(packed, live["optimizer"])
    return {
        name: whole(tensor) for part in live.values() for name, tensor in flat(packed.whole(part)).items()
    }


def taken_apart_and_put_together(packed: Packed, state: dict[str, Any]) -> None:
    """What a checkpoint takes out of a weight of several matrices comes back to its place."""
    saved = packed.whole(state)
    cut = [
        (piece.to_local(), piece.to_local().clone())
        for name in packed.weights.keys() & state.keys()
        for key, piece in state[name].items()
        if saved[name][key] is not piece
    ]
    for piece, _ in cut:
        piece.zero_()
    packed.put_back(state, saved)
    assert all(torch.equal(piece, before) for piece, before in cut)


def flat(state: dict[str, Any]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        for key, tensor in value.items() if isinstance(value, dict) else [("weight itself", value)]:
            found[f"{name}, {key}"] = tensor
    return found


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


@pytest.mark.parametrize(
    "layout", [{"shard": 2}, {"tensor": 2}, {"shard": 2, "tensor": 2}], ids=lambda sizes: "-".join(sizes)
)
def test_a_layout_changes_neither_weights_nor_what_is_saved(layout: dict[str, int]) -> None:
    """GPT-2, whose queries, keys and values are one weight."""
    alone = in_a_layout(0, Case("gpt2", {}))
    ranks = math.prod(layout.values())
    for found in run_ranks(ranks, in_a_layout, Case("gpt2", layout)):
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            assert found[name].shape == expected.shape, name
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-7)
