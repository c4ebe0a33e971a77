"""`tutti` in this process, in an empty directory, as a stranger's first command would find it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Here


@pytest.fixture
def tutti_here(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return Here(capfd)
