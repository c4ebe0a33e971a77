"""One process at a time works in a directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tutti.core import RunError
from tutti.core.hold import held


def test_a_second_one_is_refused_until_the_first_has_ended_however_it_does(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from tutti.core.hold import held
with held(Path({str(tmp_path)!r}), "training there"):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match="another process is training there"),
            held(tmp_path, "training there"),
        ):
            pass
        other.kill()
        other.wait()
    for _ in range(2):
        with held(tmp_path, "training there"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone"), held(tmp_path / "gone", "training there"):
        pass
