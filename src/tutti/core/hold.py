"""One process at a time works in a directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutti.core.errors import RunError
from tutti.core.rundir import unwritable


@contextmanager
def held(directory: Path, doing: str) -> Iterator[None]:
    """While nobody else works in `directory`. The system lets go of it when the process dies.

    `doing`: what somebody else would be found doing, e.g. "training there".

    Raises:
        RunError: somebody else works there, or there is no such directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unwritable(directory, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{directory}: another process is {doing}", "wait for it, or stop it first"
            ) from error
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(descriptor)
