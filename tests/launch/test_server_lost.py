"""The server that workers are forked from is killed, before a run and in the middle of one: the run goes on."""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from runs import Running, SlowNet, regression
from tutti.core import read_events

ARGUMENTS: dict[str, Any] = {"loss": nn.MSELoss(), "data": regression(64), "batch": 8, "checkpoint__every": 5}


def kill_server() -> None:
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_server_dies_in_mid_run(tmp_path: Path) -> None:
    running = Running(
        tmp_path / "run", model=SlowNet(0.05), workers=2, steps=40, sync__membership="fixed", **ARGUMENTS
    )
    running.until_step(12)
    kill_server()
    report = running.end(120)
    assert report["state"] == "finished" and report["steps"] == 40
    (restart,) = read_events(tmp_path / "run", "restart")
    assert restart["attempt"] == 1
    (resumed,) = read_events(tmp_path / "run", "resumed")
    assert resumed["step"] >= 10
