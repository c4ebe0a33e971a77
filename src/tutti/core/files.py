"""Files, and directories, that are either the old version or the new one, never half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def is_full(path: Path) -> bool:
    """Whether the disk that holds `path` has no room for even a few lines."""
    return shutil.disk_usage(path).free < 1 << 16


def fsync_directory(path: Path) -> None:
    """Make a rename or a new file in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a new directory, and put it at `path`. Until it is there, what was there is, or comes back."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write(new)
        _fsync_all(new)
        if path.exists():
            path.rename(old)
        new.rename(path)
        fsync_directory(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fsync_all(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_dir():
            fsync_directory(path)
            continue
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
    fsync_directory(directory)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: written beside it, fsynced, renamed."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """The same for `content`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON. NaN and infinity are refused: no JSON reader takes them."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
