"""What a rank that torchrun started takes of its own host, and who refuses to be started so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tutti
from tutti.core.errors import LaunchError
from tutti.supervise import started


@pytest.mark.parametrize(("here", "threads"), [("1", 8), ("2", 4), (None, 2), ("16", 1)])
def test_ranks_share_out_the_cores_of_their_own_host(
    here: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a world of four; who does not say how many are here has them all here."""
    monkeypatch.setattr(started, "usable_cores", lambda: 8)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert started._threads() == threads


def test_fit_is_not_started_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    data = torch.zeros(4, 2), torch.zeros(4, 1)
    with pytest.raises(LaunchError, match=r"tutti\.fit starts its workers itself"):
        tutti.fit(nn.Linear(2, 1), nn.MSELoss(), data, steps=1, batch=4, runs=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
