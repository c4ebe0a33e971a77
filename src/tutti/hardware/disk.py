"""Room on the disk that will hold the run, and how fast a checkpoint can really reach it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 4_000_000


@dataclass(frozen=True)
class Disk:
    """`write_bytes_per_second` is None when the directory cannot be written; `problem` then says why."""

    path: str
    total_bytes: int
    free_bytes: int
    write_bytes_per_second: float | None
    problem: str | None


def probe_disk(directory: Path, *, limit_bytes: int = 64_000_000, seconds: float = 0.5) -> Disk:
    """Write at most `limit_bytes` for about `seconds` into a temporary file, fsynced, and remove it.

    A directory that does not exist yet is judged by its nearest parent.
    """
    place = directory.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    usage = shutil.disk_usage(place)
    try:
        rate, problem = _write_rate(place, min(limit_bytes, usage.free // 4), seconds), None
    except OSError as error:
        rate, problem = None, error.strerror or str(error)
    return Disk(str(place), usage.total, usage.free, rate, problem)


def _write_rate(place: Path, limit_bytes: int, seconds: float) -> float:
    chunk = os.urandom(_CHUNK_BYTES)  # random: some file systems compress
    written = 0
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        start = time.perf_counter()
        while True:
            # fsync of each chunk: otherwise this would be the speed of the page cache.
            written += file.write(chunk)
            os.fsync(file.fileno())
            elapsed = time.perf_counter() - start
            if written >= limit_bytes or elapsed >= seconds:
                return written / elapsed
