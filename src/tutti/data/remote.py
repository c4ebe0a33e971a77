"""Copies of files that are read from URLs, in a directory of this machine that does not outgrow its bound.

A file is fetched whole, once, by the first process that opens it; its copy is named by the URL and by what the file
system says of its version (where it says nothing, by the day). When there is no room, copies that were read longest ago
go. A file that is larger than the bound, or than the free disk, is read where it lies.
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
#: What file systems call the time or the version of a file.
_STAMPS = (
    *(
        "mtime",
        "ETag",
        "etag",
        "LastModified",
        "Last-Modified",
        "last_modified",
        "updated",
        "modified",
        "created",
    ),
)
_DAY_SECONDS = 86400
#: A copy that has not grown for so long is not being fetched any more.
_FETCHING_SECONDS = 3600
#: How often a copy is looked for that others remove to make room for theirs.
_TRIES = 3


def stamp_of(info: dict[str, Any]) -> str | None:
    """What `info`, a file system's, says of a file's version; None: nothing."""
    return next((f"{key}={info[key]}" for key in _STAMPS if info.get(key)), None)


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
        # Nothing else of it: an address that a server sends us on to is another each time.
        version = stamp_of(info) or f"day {int(time.time()) // _DAY_SECONDS}"
        copy = self.directory / hashlib.sha256(repr((url, size, version)).encode()).hexdigest()[:32]
        with locked(self.directory / "locks" / f"{copy.name}.lock", lambda _: None):
            for _ in range(_TRIES):
                if not copy.is_file() and not self._fetch(filesystem, path, size, copy):
                    break
                with suppress(FileNotFoundError):  # it had to make room, just now
                    os.utime(copy, ns=(time.time_ns(),) * 2)  # read now, finer than the clock of the system
                    return copy.open("rb")
        return cast(BinaryIO, filesystem.open(path, "rb"))

    def _fetch(self, filesystem: Any, path: str, size: int, copy: Path) -> bool:
        """Whether there is a copy now."""
        if size < 0 or size > self.limit:
            return False
        beside = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
        try:
            if not self._make_room(size) or shutil.disk_usage(self.directory).free < size + _SPARE_BYTES:
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

    def _make_room(self, size: int) -> bool:
        """Remove copies that were read longest ago where that makes room for `size` bytes more; whether there is.

        Who has one open goes on reading; what another process is fetching stays.
        """
        with locked(self.directory / "locks" / "room.lock", lambda _: None):
            held, copies = 0, []
            for path in self.directory.iterdir():
                with suppress(OSError):  # gone just now
                    stat = path.stat()
                    if path.is_file():
                        held += stat.st_size
                        if path.suffix != ".tmp" or time.time() - stat.st_mtime > _FETCHING_SECONDS:
                            copies.append((stat.st_mtime_ns, stat.st_size, path))
            if held - sum(freed for _, freed, _ in copies) + size > self.limit:
                return False
            for _, freed, path in sorted(copies):
                if held + size <= self.limit:
                    break
                path.unlink(missing_ok=True)
                held -= freed
            return True
