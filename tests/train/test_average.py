"""The average of the weights against the recurrence in its docstring, over the weights of every checkpoint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tutti
from runs import regression
from tutti.core.errors import CheckpointError
from tutti.train.checkpoints import load

STEPS, SHARE = 12, 0.4
X, Y = regression(64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def fit(place: Path, name: str, **settings: Any) -> tutti.FitResult:
    settings = {"train__average": SHARE, "checkpoint__every": 1} | settings
    return tutti.fit(
        Net(), nn.MSELoss(), (X[:48], Y[:48]), validation=(X[48:], Y[48:]), steps=STEPS, batch=8, name=name,
        runs=str(place / "runs"), console=False, train__learning_rate=3e-2, train__precision="fp32",
        checkpoint__keep=50, sync__shares="even", **settings,
    )  # fmt: skip


def weights_at(run: Path, step: int) -> dict[str, np.ndarray]:
    """The weights of a checkpoint, not their average."""
    state = dict(Net().state_dict())
    load(run / "checkpoints" / f"step-{step}", {"model": state})
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def by_hand(run: Path, every: int = 1, together: int = 0) -> dict[str, np.ndarray]:
    """`together`: steps at first that are averaged one by one."""
    average = {name: tensor.double().numpy() for name, tensor in Net().state_dict().items()}
    ends = [*range(1, together + 1), *range(together + every, STEPS + 1, every)]
    for before, step in zip([0, *ends], ends, strict=False):
        count = step - before
        weight = max(1 - math.exp(-count / (SHARE * STEPS)), min(1.0, 9 * count / (10 + step)))
        now = weights_at(run, step)
        average = {name: a + weight * (now[name] - a) for name, a in average.items()}
    return average


def assert_alike(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(np.asarray(one[name]), np.asarray(other[name]), atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("average")


@pytest.fixture(scope="module")
def alone(place: Path) -> tutti.FitResult:
    return fit(place, "alone")


def test_the_average_is_what_is_judged_and_handed_on(place: Path, alone: tutti.FitResult) -> None:
    run = place / "runs" / "alone"
    expected = by_hand(run)
    assert_alike(dict(alone.model.state_dict()), expected)
    assert_alike(dict(load_file(run / "export" / "model.safetensors")), expected)
    last = weights_at(run, STEPS)
    assert max(abs(last[name] - expected[name]).max() for name in last) > 1e-3  # it is another model
    model = Net()
    model.load_state_dict({name: torch.tensor(value).float() for name, value in expected.items()})
    loss = nn.MSELoss()(model(X[48:]), Y[48:]).item()
    assert alone.report["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_training_itself_is_as_without(place: Path, alone: tutti.FitResult) -> None:
    without = fit(place, "without", train__average=0.0)
    assert_alike(weights_at(place / "runs" / "alone", STEPS), dict(without.model.state_dict()), 0.0)


def test_workers_and_shards_average_alike(place: Path, alone: tutti.FitResult) -> None:
    for name, settings in {"two": {"workers": 2}, "sharded": {"layout__shard": 2}}.items():
        found = fit(place, name, checkpoint__every=STEPS, **settings)
        assert_alike(dict(found.model.state_dict()), dict(alone.model.state_dict()))


def test_replicas_that_drift_average_where_they_agree(place: Path) -> None:
    found = fit(place, "diloco", workers=2, sync__policy="diloco", sync__every=3, checkpoint__every=3)
    assert_alike(dict(found.model.state_dict()), by_hand(place / "runs" / "diloco", every=3))


def test_who_drifts_after_a_synchronous_start_keeps_its_average(place: Path) -> None:
    sync = {"sync__policy": "local_sgd", "sync__every": 4, "sync__synchronous_steps": 4}
    found = fit(place, "late", workers=2, **sync)
    assert_alike(dict(found.model.state_dict()), by_hand(place / "runs" / "late", every=4, together=4))


def test_a_run_that_goes_on_goes_on_averaging(place: Path, alone: tutti.FitResult) -> None:
    run = place / "runs" / "again"
    shutil.copytree(place / "runs" / "alone", run)
    for step in range(7, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    shutil.rmtree(run / "export")
    found = fit(place, "again", resume=True)
    assert_alike(dict(found.model.state_dict()), dict(alone.model.state_dict()), 0.0)
    with pytest.raises(CheckpointError, match="another optimizer"):
        fit(place, "again", resume=True, train__average=0.0)
