"""Where smaller models lie until one is kept: a folder in their run that nobody finds there afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tutti.core.rundir import unwritable


@contextmanager
def workshop(run: Path) -> Iterator[Path]:
    """A folder in `run` that is gone at the end. What processes that were killed have left there goes first.

    Raises:
        RunError: `run` cannot be written.
    """
    ours = f".compress-{socket.gethostname()}-"  # of other machines nobody knows here which processes live
    with writing(run):
        for path in run.iterdir():
            owner = path.name.removeprefix(ours).partition("-")[0]
            if path.name.startswith(ours) and owner.isdecimal() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(path, ignore_errors=True)
        folder = tempfile.TemporaryDirectory(prefix=f"{ours}{os.getpid()}-", dir=run)
    with folder as place:
        yield Path(place)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what the system says against writing to `path` is said in the user's words.

    Raises:
        RunError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error
