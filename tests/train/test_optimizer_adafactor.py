"""Adafactor against the paper's equations in NumPy, against transformers, and cut over ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers.optimization import Adafactor as TransformersAdafactor

from ranks import run_ranks
from tutti.train.adafactor import Adafactor

#: Matrices, a stack of them, a vector, a number, and one row.
SHAPES = [(8, 5), (5, 8), (3, 4, 6), (7,), (), (1, 6)]
STEPS = 5
Array = NDArray[np.float64]


def of_a_matrix(gradient: Array, rows: Array, columns: Array, beta: float) -> tuple[Array, Array, Array]:
    """Algorithm 4, lines 5 to 8: sums, and an outer product divided by the sum of all."""
    squares = gradient**2 + 1e-30
    rows = beta * rows + (1 - beta) * squares @ np.ones(squares.shape[1])
    columns = beta * columns + (1 - beta) * np.ones(squares.shape[0]) @ squares
    return gradient / np.sqrt(np.outer(rows, columns) / rows.sum()), rows, columns


def reference(weight: Array, gradients: list[Array], rates: list[float], decay: float) -> Array:
    """Algorithms 4 and 5 of Shazeer and Stern 2018 in float64, with decoupled weight decay."""
    weight = weight.astype(np.float64)
    square = np.zeros(weight.shape)
    stack = int(np.prod(weight.shape[:-2])) if weight.ndim > 1 else 0
    rows = [np.zeros(weight.shape[-2]) for _ in range(stack)]
    columns = [np.zeros(weight.shape[-1]) for _ in range(stack)]
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient, beta = gradient.astype(np.float64), 1 - step**-0.8
        if stack:
            update = np.empty((stack, *weight.shape[-2:]))
            for number, matrix in enumerate(gradient.reshape(update.shape)):
                made = of_a_matrix(matrix, rows[number], columns[number], beta)
                update[number], rows[number], columns[number] = made
            update = update.reshape(weight.shape)
        else:
            square = beta * square + (1 - beta) * (gradient**2 + 1e-30)
            update = gradient / np.sqrt(square)
        update = update / max(1.0, math.sqrt((update**2).mean()))
        size = max(1e-3, math.sqrt((weight**2).mean()))
        weight = weight - rate * decay * weight - rate * size * update
    return weight


def material() -> tuple[list[Any], list[list[Any]]]:
    """Weights (the last of nothing but zeros), and gradients that grow, so that updates are bounded."""
    generator = np.random.default_rng(7)
    weights = [np.asarray(generator.normal(size=shape), dtype=np.float32) for shape in SHAPES]
    weights[-1][:] = 0.0
    gradients = [
        [np.asarray(10.0**step * generator.normal(size=shape), dtype=np.float32) for shape in SHAPES]
        for step in range(STEPS)
    ]
    return weights, gradients


def trained(optimizer: Any, parameters: list[nn.Parameter], gradients: list[list[Any]], rates: Any) -> None:
    for step, rate in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()


RATES = [0.1 * step for step in range(1, STEPS + 1)]


def test_equals_the_paper() -> None:
    weights, gradients = material()
    parameters = [nn.Parameter(torch.from_numpy(weight.copy())) for weight in weights]
    trained(Adafactor(parameters, lr=9.9, weight_decay=0.2), parameters, gradients, RATES)
    for index, (weight, parameter) in enumerate(zip(weights, parameters, strict=True)):
        expected = reference(weight, [step[index] for step in gradients], RATES, 0.2)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=2e-6)


def test_equals_transformers_where_both_have_the_same_to_do() -> None:
    weights, gradients = material()
    ours = [nn.Parameter(torch.from_numpy(weight.copy())) for weight in weights]
    theirs = [nn.Parameter(torch.from_numpy(weight.copy())) for weight in weights]
    trained(Adafactor(ours, lr=1.0), ours, gradients, RATES)
    other = TransformersAdafactor(theirs, lr=1.0, relative_step=False, scale_parameter=True)
    trained(other, theirs, gradients, RATES)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-6)


def test_it_keeps_a_number_for_each_row_and_column() -> None:
    parameter = nn.Parameter(torch.ones(30, 20))
    parameter.grad = torch.ones(30, 20)
    optimizer = Adafactor([parameter], lr=0.1)
    optimizer.step()
    shapes = {name: tuple(value.shape) for name, value in optimizer.state[parameter].items()}
    assert shapes == {"step": (), "row": (30, 1), "column": (1, 20)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_in_half_precision_are_no_zeros(dtype: torch.dtype) -> None:
    """1e-5 squared is nothing in fp16."""
    parameter = nn.Parameter(torch.ones(4, 4, dtype=dtype))
    parameter.grad = torch.full((4, 4), 1e-5, dtype=dtype)
    Adafactor([parameter], lr=0.1).step()
    torch.testing.assert_close(parameter.detach().float(), torch.full((4, 4), 0.9), rtol=0, atol=4e-3)


def test_no_gradient_changes_nothing() -> None:
    given, left_out = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3))
    given.grad = torch.zeros(3, 4)
    Adafactor([given, left_out], lr=0.1).step()
    assert torch.equal(given, torch.ones(3, 4)) and torch.equal(left_out, torch.ones(3))


# Cut over ranks.

PLACEMENTS = [
    (Shard(0), Shard(1)),
    (Shard(1), Shard(0)),
    (Shard(0), Shard(0)),
    (Replicate(), Shard(1)),
    (Shard(0), Replicate()),
]


def cut(rank: int) -> list[list[Tensor]]:
    """Every placement on a mesh of 2 × 2; sides that two does not divide, and fewer rows than ranks."""
    mesh = init_device_mesh("cpu", (2, 2))
    weights, gradients = material()
    found = []
    for placements in PLACEMENTS:
        several = [
            (nn.Parameter(distribute_tensor(torch.from_numpy(w.copy()), mesh, placements)), index)
            for index, w in enumerate(weights)
            if w.ndim > 1
        ]
        parameters = [parameter for parameter, _ in several]
        optimizer = Adafactor(parameters, lr=0.1, weight_decay=0.2)
        for step in gradients:
            for parameter, index in several:
                parameter.grad = distribute_tensor(torch.from_numpy(step[index].copy()), mesh, placements)
            optimizer.step()
        for parameter in parameters:
            row, column = optimizer.state[parameter]["row"], optimizer.state[parameter]["column"]
            assert isinstance(row, DTensor) and isinstance(column, DTensor)
            assert row.to_local().numel() <= parameter.to_local().shape[:-1].numel()
        found.append([parameter.full_tensor().detach() for parameter in parameters])
    return found


def test_however_a_matrix_is_cut_the_step_is_that_of_one_process() -> None:
    weights, gradients = material()
    for result in run_ranks(4, cut):
        for placements, several in zip(PLACEMENTS, result, strict=True):
            matrices = [index for index, weight in enumerate(weights) if weight.ndim > 1]
            for index, found in zip(matrices, several, strict=True):
                expected = reference(weights[index], [step[index] for step in gradients], [0.1] * STEPS, 0.2)
                np.testing.assert_allclose(
                    found.numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=f"{placements}"
                )
