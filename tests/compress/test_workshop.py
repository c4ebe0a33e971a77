"""The folder in a run where smaller models lie until one is kept."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutti import api
from tutti.cli import run as tutti_command
from tutti.compress.workshop import workshop, writing
from tutti.core import RunError


def test_what_killed_processes_have_left_goes(tmp_path: Path) -> None:
    """What others still use stays, and so does that of processes which cannot be seen from here."""
    begun = "import sys, time; from pathlib import Path; from tutti.compress.workshop import workshop\n"
    begun += "with workshop(Path(sys.argv[1])) as place: print(place, flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", begun, tmp_path], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        elsewhere = tmp_path / f".compress-not-{socket.gethostname()}-{other.pid}-x"
        elsewhere.mkdir()
        with workshop(tmp_path) as ours:
            assert left.is_dir() and ours.parent == tmp_path and ours != left
        other.kill()
        other.wait()
    assert left.is_dir()
    with workshop(tmp_path) as ours:
        assert set(tmp_path.iterdir()) == {ours, elsewhere}
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_what_cannot_be_written_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with (
        pytest.raises(RunError, match=f"{tmp_path} cannot be written: Permission denied"),
        workshop(tmp_path),
    ):
        pass
    with pytest.raises(RunError, match="the disk that holds"), writing(tmp_path):
        raise OSError(errno.ENOSPC, "")


def test_sigterm_clears_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(*_: object, **__: object) -> None:
        with workshop(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    monkeypatch.setattr(api, "compress", compress)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        assert tutti_command(["compress", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not heard and not list(tmp_path.iterdir())
