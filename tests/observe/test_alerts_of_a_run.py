"""A real run: what its events say of a step's parts, and who is told when it has finished."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tutti
from runs import Running, SlowNet, regression
from tutti.core import read_events
from tutti.core.errors import ConfigError, LaunchError
from tutti.observe.dashboard.rows import Rows
from tutti.observe.growing import GrowingHistory


def test_two_workers_and_a_program_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    out, script = tmp_path / "told.jsonl", tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read() + '\\n')")
    alerts = {"alerts__finished": True, "alerts__command": f"{sys.executable} {script}"}
    alerts |= {"alerts__webhook": "http://127.0.0.1:9/", "alerts__checkpoint_minutes": None}
    result = tutti.fit(
        nn.Linear(4, 1), nn.MSELoss(), regression(64), workers=2, steps=4, batch=16, console=False,
        runs=str(tmp_path), name="r", train__precision="fp32", **alerts,
    )  # fmt: skip
    assert result.report["state"] == "finished"  # the dead webhook is no business of the run
    (told,) = map(json.loads, out.read_text().splitlines())
    assert (told["subject"], told["rule"], told["state"]) == ("r", "finished", "firing")
    assert "the webhook cannot be reached" in capsys.readouterr().err

    steps = list(read_events(tmp_path / "r", "step"))
    assert {event["rank"] for event in steps} == {0, 1} and all(event["alone_seconds"] > 0 for event in steps)
    for event in (event for event in steps if "loss" in event):
        parts = ("wait_data", "forward", "backward", "exchange", "optimizer", "sync")
        spent = {part: event[f"{part}_seconds"] for part in parts}
        assert spent["forward"] > 0 and spent["backward"] > 0 and spent["optimizer"] > 0
        assert sum(spent.values()) <= event["seconds"]
        own = spent["wait_data"] + spent["forward"] + spent["backward"]
        assert own <= event["alone_seconds"] + 1e-4 and event["alone_seconds"] <= event["seconds"]
    growing, rows = GrowingHistory(tmp_path / "r"), Rows()
    growing.refresh()
    rows.update(growing)
    assert [row["step"] for row in rows.rows] == [1, 2, 3, 4]
    assert all(
        {"skew", "forward_seconds", "bytes", "gradient_norm", "learning_rate"} <= set(row)
        for row in rows.rows
    )


def test_a_worker_that_is_killed_for_good_is_told_of(tmp_path: Path) -> None:
    """Nobody but the launcher is left to say so."""
    out, script = tmp_path / "told.jsonl", tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read() + '\\n')")
    run = Running(
        tmp_path / "r", model=SlowNet(0.05), loss=nn.MSELoss(), data=regression(64), steps=1000, batch=16,
        train__precision="fp32", watch__max_restarts=0, alerts__command=f"{sys.executable} {script}",
    )  # fmt: skip
    run.until_step(2, seconds=180)
    launcher = tmp_path / "r" / "live" / "launcher.json"
    assert json.loads(launcher.read_text())["pid"] == os.getpid()
    run.kill(0)
    with pytest.raises(LaunchError, match="SIGKILL"):
        run.end()
    assert not launcher.exists()
    (told,) = map(json.loads, out.read_text().splitlines())
    assert (told["key"], told["state"]) == ("failed", "firing") and "SIGKILL" in told["said"]
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["state"] == "failed"
    assert "given up: worker 0 was killed by SIGKILL" in (tmp_path / "r" / "report.md").read_text()


def test_nobody_is_started_for_somebody_who_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    with pytest.raises(ConfigError, match=r"\$NO_SUCH_HOOK, which is not set"):
        tutti.fit(
            nn.Linear(4, 1), nn.MSELoss(), regression(64), steps=1, runs=str(tmp_path), name="r",
            alerts__webhook="$NO_SUCH_HOOK",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
