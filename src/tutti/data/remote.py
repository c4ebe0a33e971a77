"""Copies of files that are read from URLs, in a directory of this machine that does not outgrow its bound.

A file is fetched whole, once, by the first process that opens it; its copy is named by the URL and by what the file
system says of its version. When there is no room, copies that were read longest ago go. A file that is larger than the
bound, or than the free disk, is read where it lies.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from tutti.data.lock import locked

_fsspec: Any = fsspec  # it has no types
#: File systems that are on this machine already.
_NEAR = frozenset(("file", "local", "memory"))
_COPY_BYTES = 1 << 20
#: Of the disk, what copies leave free.
_SPARE_BYTES = 1 << 28


@dataclass(frozen=True)
class RemoteCache:
    """`directory` holds at most `limit` bytes."""

    directory: Path
    limit: int

    def open(self, url: str) -> BinaryIO:
        """Open `url`, its copy if there is one.

        Raises:
            OSError: it cannot be had.
        """
        filesystem, path = _fsspec.core.url_to_fs(url)
        protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
        if not _NEAR.isdisjoint(protocols):
            return cast(BinaryIO, filesystem.open(path, "rb"))
        info = filesystem.info(path)
        size = int(info.get("size") or -1)
        named = repr((url, sorted((str(key), str(value)) for key, value in info.items())))
        copy = self.directory / hashlib.sha256(named.encode()).hexdigest()[:32]
        with locked(self.directory / "locks" / f"{copy.name}.lock", lambda _: None):
            if not copy.is_file() and not self._fetch(filesystem, path, size, copy):
                return cast(BinaryIO, filesystem.open(path, "rb"))
            os.utime(copy, ns=(time.time_ns(),) * 2)  # read just now, finer than the clock of the system
            return copy.open("rb")

    def _fetch(self, filesystem: Any, path: str, size: int, copy: Path) -> bool:
        """Whether there is a copy now."""
        if size < 0 or size > self.limit:
            return False
        beside = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
        try:
            self._make_room(size)
            if shutil.disk_usage(self.directory).free < size + _SPARE_BYTES:
                return False
            with filesystem.open(path, "rb") as source, beside.open("wb") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
            beside.rename(copy)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
        finally:
            beside.unlink(missing_ok=True)
        return True

    def _make_room(self, size: int) -> None:
        """Remove copies that were read longest ago; who has one open goes on reading."""
        with locked(self.directory / "locks" / "room.lock", lambda _: None):
            copies = []
            for path in self.directory.iterdir():
                with suppress(OSError):  # gone just now
                    stat = path.stat()
                    if path.is_file():
                        copies.append((stat.st_mtime_ns, stat.st_size, path))
            held = sum(size for _, size, _ in copies)
            for _, freed, path in sorted(copies):
                if held + size <= self.limit:
                    return
                path.unlink(missing_ok=True)
                held -= freed
