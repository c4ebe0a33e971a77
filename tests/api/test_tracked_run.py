"""A real run that is tracked: what trackers got is what its events say, and the run is what it is without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutti
from runs import regression
from tutti.core import read_events


def fit(tmp_path: Path, trackers: list[str], **settings: Any) -> tuple[tutti.FitResult, Path]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    result = tutti.fit(
        model, nn.MSELoss(), regression(64), workers=2, batch=16, console=False, runs=str(tmp_path),
        train__precision="fp32", train__learning_rate=0.01, trackers=trackers, **settings,
    )  # fmt: skip
    return result, tmp_path / settings.get("name", "fit")


def assert_same(result: tutti.FitResult, other: tutti.FitResult) -> None:
    """But for rounding: who takes which sample goes by speed."""
    assert result.report["steps"] == other.report["steps"]
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(run, "step") if "loss" in event}


@pytest.mark.slow
def test_trackers_get_what_the_events_say_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    plain, _ = fit(tmp_path, [], name="plain", steps=6)
    tracked, run = fit(tmp_path, ["tensorboard", "mlflow", "wandb"], name="tracked", steps=6)
    assert_same(tracked, plain)
    assert not list(read_events(run, "warning")) and not (tmp_path / "plain" / "tensorboard").exists()

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client, run_id = (
        MlflowClient(tracking_uri=uri),
        json.loads((run / "tracked" / "mlflow.json").read_text())[uri],
    )
    points = client.get_metric_history(run_id, "loss/train")
    assert {point.step: point.value for point in points} == pytest.approx(losses(run))
    assert client.get_run(run_id).data.metrics["report/train_loss"] == tracked.report["train_loss"]
    assert {file.path for file in client.list_artifacts(run_id)} == {"report.md", "report.json", "loss.png"}
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in read.Scalars("loss/train")] == [1, 2, 3, 4, 5, 6]
    assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 1

    # Nobody listens there: the same run, one warning.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    lonely, run = fit(tmp_path, ["mlflow"], name="lonely", steps=6)
    assert_same(lonely, plain)
    (warning,) = read_events(run, "warning")
    assert warning["tracker"] == "mlflow" and "127.0.0.1" in warning["message"]
    assert capsys.readouterr().err.count("warning: mlflow: ") == 1
    assert lonely.report["state"] == "finished" and "mlflow: " not in lonely.report
