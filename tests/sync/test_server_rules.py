"""What the server does with gradients, against NumPy written from the papers' equations and torch's own optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tutti.config.training import TrainConfig
from tutti.sync.server import Centre, Spec
from tutti.train.served import server_optimizer

RATE = 0.1


class PlainDescent:
    """w ← w − η g, so that the server's own part of the rule is all there is."""

    def __init__(self, _: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def step(self, factor: float) -> None:
        with torch.no_grad():
            for parameter in self._parameters.values():
                assert parameter.grad is not None
                parameter -= RATE * factor * parameter.grad

    def state(self) -> dict[str, torch.Tensor]:
        return {}


def spec(scale: float = 1.0, share: float = 1.0) -> Spec:
    return Spec(["a", "b"], [[2, 3], [4]], [share, 1.0], [], scale)


def random(seed: int, size: int = 10) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_divides_once_by_all_targets_and_clips_the_whole(clip: float | None) -> None:
    """Two parts hold pieces of one model; parameter `a` is whole on both, and counts once in the norm."""
    centre = Centre([spec(3.0, 0.5), spec(3.0, 0.5)], PlainDescent, clip=clip, compensation=0.0)
    weights = [random(1), random(2)]
    weights[1][:6] = weights[0][:6]
    for piece, flat in zip(centre.pieces, weights, strict=True):
        piece.flat.copy_(flat)
    gradients = [random(3), random(4)]
    gradients[1][:6] = gradients[0][:6]
    norm = centre.step([g.clone() for g in gradients], 7, 0.5, None)
    g = [3.0 * gradient.double().numpy() / 7 for gradient in gradients]
    expected_norm = np.sqrt((g[0] ** 2).sum() + (g[1][6:] ** 2).sum())
    assert norm == pytest.approx(expected_norm, rel=1e-6)
    shrink = 1.0 if clip is None else min(1.0, clip / expected_norm)
    for piece, flat, gradient in zip(centre.pieces, weights, g, strict=True):
        expected = flat.numpy() - RATE * 0.5 * shrink * gradient
        np.testing.assert_allclose(piece.flat.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_delay_compensation_follows_the_equation() -> None:
    """Zheng et al. 2017, equation 10: w ← w − η (g + λ g ⊙ g ⊙ (w − w_backup))."""
    centre = Centre([spec()], PlainDescent, clip=None, compensation=0.04)
    now, before, gradient = random(1), random(2), 5 * random(3)
    centre.pieces[0].flat.copy_(now)
    centre.step([gradient.clone()], 1, 1.0, [before])
    w, old, g = (x.double().numpy() for x in (now, before, gradient))
    expected = w - RATE * (g + 0.04 * g * g * (w - old))
    np.testing.assert_allclose(centre.pieces[0].flat.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(centre.pieces[0].flat.numpy(), w - RATE * g, rtol=1e-3)


def test_what_is_not_finite_changes_nothing() -> None:
    centre = Centre([spec()], PlainDescent, clip=1.0, compensation=0.0)
    gradient = random(3)
    gradient[2] = float("nan")
    assert np.isnan(centre.step([gradient], 4, 1.0, None))
    assert not centre.pieces[0].flat.any()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_the_server_steps_as_the_optimizer_does_and_goes_on_from_its_state(optimizer: str) -> None:
    """Against the same optimizer in one process, built from the model itself."""
    from tutti.train.optimizer import build_optimizers
    from tutti.train.served import KeptOptimizer

    train = TrainConfig(optimizer=optimizer)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    objective = nn.Module()
    objective.model = model
    alone = build_optimizers(model, train, 0.01)
    groups = KeptOptimizer(objective, alone, train).groups()
    named = dict(objective.named_parameters())
    shapes = [list(p.shape) for p in named.values()]
    whole = Spec(list(named), shapes, [1.0] * len(named), groups, 1.0)
    make = server_optimizer(train, 0.01)
    centre = Centre([whole], make, clip=None, compensation=0.0)
    centre.pieces[0].flat.copy_(torch.cat([p.detach().flatten() for p in named.values()]))
    for step in range(1, 9):
        flat = random(step, len(centre.pieces[0].flat))
        sizes = [p.numel() for p in named.values()]
        for parameter, piece in zip(named.values(), torch.split(flat, sizes), strict=True):
            parameter.grad = piece.view(parameter.shape).clone()
        alone.set_learning_rate(1 / step)
        alone.step()
        centre.step([flat.clone()], 1, 1 / step, None)
        if step == 4:  # another server takes over
            state = {name: tensor.clone() for name, tensor in centre.state().items()}
            centre = Centre([whole], make, clip=None, compensation=0.0)
            centre.load(state)
    expected = torch.cat([p.detach().flatten() for p in named.values()])
    torch.testing.assert_close(centre.pieces[0].flat, expected, rtol=1e-6, atol=1e-7)
