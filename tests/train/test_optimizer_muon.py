"""Our Muon against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tutti.train.muon import Muon, iteration_dtype, orthogonalize

SHAPES = [(8, 8), (8, 20), (20, 8), (20, 8), (5, 3)]


def reference(
    weight: np.ndarray, gradients: list[np.ndarray], rate: float, mu: float, decay: float
) -> np.ndarray:
    """One matrix in float64: M ← μM + (1−μ)G, U = (1−μ)G + μM, five quintics, Moonshot's scale and decay."""
    weight, momentum = weight.astype(np.float64), np.zeros(weight.shape)
    for gradient in gradients:
        momentum = mu * momentum + (1 - mu) * gradient
        x = (1 - mu) * gradient + mu * momentum
        x = x / np.sqrt((x**2).sum())
        if x.shape[0] > x.shape[1]:
            x = x.T
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        x = x if x.shape == weight.shape else x.T
        weight = (1 - rate * decay) * weight - rate * 0.2 * np.sqrt(max(weight.shape)) * x
    return weight


def test_equals_the_equations() -> None:
    generator = np.random.default_rng(5)
    weights = [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]
    gradients = [[generator.normal(size=shape).astype(np.float32) for shape in SHAPES] for _ in range(4)]
    parameters = [nn.Parameter(torch.from_numpy(weight.copy())) for weight in weights]
    optimizer = Muon(parameters, lr=0.03, momentum=0.9, weight_decay=0.2, dtype=torch.float32)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    for index, (weight, parameter) in enumerate(zip(weights, parameters, strict=True)):
        expected = reference(weight, [step[index] for step in gradients], 0.03, 0.9, 0.2)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 48), (2, 48, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.max() < 1.3
    assert values.median() > 0.65
    # Directions stay: U Vᵀ of the result is that of the input.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalize(matrices).flatten(1), (u @ v).flatten(1)).min()
        > 0.95
    )


def test_accelerators_batched_product_equals_the_loop() -> None:
    """`meta` cannot compute, so the batched branch is run by claiming another device."""
    torch.manual_seed(1)
    matrices = torch.randn(4, 6, 9)
    batched = _Elsewhere(matrices)
    torch.testing.assert_close(orthogonalize(batched).as_subclass(torch.Tensor), orthogonalize(matrices))


class _Elsewhere(torch.Tensor):
    """A CPU tensor that says it is on an accelerator."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def test_bf16_agrees_to_a_few_per_cent() -> None:
    torch.manual_seed(2)
    matrices = torch.randn(2, 24, 40)
    exact, coarse = orthogonalize(matrices), orthogonalize(matrices.bfloat16()).float()
    assert (exact - coarse).norm() / exact.norm() < 0.05
    assert iteration_dtype(torch.device("cuda")) == torch.bfloat16
    assert iteration_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_zero_gradients_and_missing_ones_change_nothing() -> None:
    given, left_out = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    given.grad = torch.zeros(3, 4)
    Muon([given, left_out], lr=0.1).step()
    assert torch.equal(given, torch.ones(3, 4))
    assert torch.equal(left_out, torch.ones(3, 4))


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match=r"\(4,\)"):
        Muon([nn.Parameter(torch.ones(4))], lr=0.1)


def test_state_is_keyed_by_parameter_and_restores_the_course() -> None:
    def train(model: nn.Module, optimizer: Muon, steps: int) -> None:
        for step in range(steps):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 4, bias=False))
    optimizer = Muon(model.parameters(), lr=0.02)
    train(model, optimizer, 3)
    saved = get_optimizer_state_dict(model, optimizer)
    assert set(saved["state"]) == {"0.weight", "1.weight"}
    assert set(saved["state"]["0.weight"]) == {"momentum_buffer"}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {
        name: {key: value.clone() for key, value in entry.items()} for name, entry in saved["state"].items()
    }
    train(model, optimizer, 2)

    other = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 4, bias=False))
    other.load_state_dict(weights)
    restored = Muon(other.parameters(), lr=0.02)
    set_optimizer_state_dict(other, restored, {"state": state, "param_groups": saved["param_groups"]})
    train(other, restored, 2)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
