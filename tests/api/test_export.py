"""An export replaces an export, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import tutti


def test_somebody_elses_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(tutti.TuttiError, match="exists and is no exported model"):
        tutti.export(tmp_path / "run", tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
