"""`tutti.fit`: any module, any loss - a CNN and an MLP, against plain PyTorch on one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutti
from tutti.core import LossSum, read_events
from tutti.data import TensorSource
from tutti.train.feed import Feed


def squares(samples: int = 96) -> tuple[Tensor, Tensor]:
    """8×8 pictures with a bright quadrant; which one is the class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(samples, 1, 8, 8, generator=generator)
    classes = torch.randint(0, 4, (samples,), generator=generator)
    for image, quadrant in zip(images, classes.tolist(), strict=True):
        row, column = divmod(quadrant, 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
    return images, classes


def cnn() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )


class Regressor(nn.Module):
    """An MLP as a user would write it in a script: a class that only `__main__` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


SETTINGS: dict[str, Any] = {
    "train__learning_rate": 0.01,
    "train__schedule": "constant",
    "train__warmup": 0,
    "train__weight_decay": 0.0,
    "train__clip": None,
    "train__precision": "fp32",
}


def plain(model: nn.Module, loss: Any, data: tuple[Tensor, Tensor], steps: int, batch: int) -> nn.Module:
    """The same samples in the same order, in one process, by PyTorch alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    feed = Feed(TensorSource(data), 0, torch.device("cpu"))
    for step in range(steps):
        portion = feed.load([(step * batch, (step + 1) * batch)], batch, 1)
        numbers = [n for _, numbers in portion.ids for n in numbers]
        optimizer.zero_grad()
        loss(model(data[0][numbers]), data[1][numbers]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("sync", ["allreduce", "ddp"])
def test_cnn_on_two_workers_equals_plain_torch(tmp_path: Path, sync: str) -> None:
    data = squares()
    model = cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extra = {"sync__implementation": "ddp"} if sync == "ddp" else {}
    result = tutti.fit(
        model,
        nn.CrossEntropyLoss(),
        data,
        workers=2,
        validation=squares(32),
        steps=12,
        batch=18,
        runs=str(tmp_path),
        console=False,
        **SETTINGS,
        **extra,
    )
    expected = plain(cnn(), nn.CrossEntropyLoss(), data, 12, 18)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = result.report
    assert report["state"] == "finished" and report["steps"] == 12 and report["world_size"] == 2
    assert report["bytes_sent"] > 0
    assert 0 < report["validation_loss"] < report_first_loss(tmp_path / "fit")


def report_first_loss(run: Path) -> float:
    return next(event["loss"] for event in read_events(run, "step") if event["step"] == 1)


def test_mlp_with_a_loss_sum_and_no_validation(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 5, generator=generator)
    y = x.sum(1)

    def weighted(outputs: Tensor, targets: Tensor) -> LossSum:
        return LossSum((outputs - targets).square().sum(), torch.tensor(float(len(targets))))

    torch.manual_seed(3)
    model = Regressor()
    result = tutti.fit(
        model, weighted, (x, y), workers=2, steps=10, batch=16, runs=str(tmp_path), console=False, **SETTINGS
    )
    torch.manual_seed(3)
    expected = plain(Regressor(), nn.MSELoss(), (x, y), 10, 16)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert result.report["validation_loss"] is None


def normalised() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))


def test_batch_normalisation_sees_whole_batches(tmp_path: Path) -> None:
    """Also where an epoch ends after the first sample of a step, and in steps whose gradient noise is looked at; and
    its statistics are of what it was trained on alone."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(33, 5, generator=generator)
    y = x.sum(1, keepdim=True)
    result = tutti.fit(
        normalised(), nn.MSELoss(), (x, y), steps=21, batch=8, runs=str(tmp_path), console=False, **SETTINGS
    )
    for name, value in plain(normalised(), nn.MSELoss(), (x, y), 21, 8).state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(tutti.TuttiError, match="not each of 2 workers has two"):
        tutti.fit(
            normalised(),
            nn.MSELoss(),
            (x, y),
            workers=2,
            batch=3,
            name="few",
            runs=str(tmp_path),
            console=False,
        )
    assert not (tmp_path / "few").exists()


SCRIPT = """
import torch, tutti

class Doubler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.factor * x

x = torch.linspace(-1, 1, 64)
result = tutti.fit(
    Doubler(), torch.nn.MSELoss(), (x, 2 * x), workers=2, steps=80, batch=16, console=False, train__learning_rate=0.05
)
print(f"{float(result.model.factor):.2f} {result.report['restarts']}")
"""


@pytest.mark.slow  # the README's script is run every day
def test_a_plain_script_without_a_guard_and_with_its_own_classes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    factor, restarts = done.stdout.split()
    assert abs(float(factor) - 2.0) < 0.2 and restarts == "0"


def test_bad_arguments_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(tutti.TuttiError, match="2 inputs but 3 targets"):
        tutti.fit(cnn(), nn.MSELoss(), (torch.ones(2, 1), torch.ones(3)), runs=str(tmp_path))
    with pytest.raises(tutti.TuttiError, match=r"learning_rate"):
        tutti.fit(cnn(), nn.MSELoss(), squares(8), runs=str(tmp_path), train__learning_rat=1.0)
    assert not any(tmp_path.iterdir())
