"""Which sources a run was started from."""

from __future__ import annotations

import subprocess

#: A repository that takes longer to look through is not named.
_TIMEOUT_SECONDS = 2.0


def source_commit() -> str | None:
    """The commit of the git repository that this directory is in, with `-dirty` where its files differ from it.

    None: it is in none, or there is no git.
    """
    words = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
