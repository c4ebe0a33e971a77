"""Writes an `Image` as a checkpoint of torch.distributed.checkpoint.

Planning, deduplication and the collectives between the ranks of a replica stay torch's. Only the two places
where bytes reach the disk are ours: `write_data` (each rank writes its image) and `finish` (the coordinator
writes `.metadata` and then commits). An error in either reaches every rank through torch's own error-safe
collectives.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import xxhash
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from tutti.train.checkpoints.image import PAGE_BYTES, Image
from tutti.train.checkpoints.manifest import BLOCK_BYTES, FileRecord, file_records

_O_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux; elsewhere writes go through the page cache


class ImageWriter(FileSystemWriter):
    """A storage writer of DCP for one save into the fresh directory `path`.

    `commit` is called on the coordinator with the records of every file of every rank, when all are on the
    disk.
    """

    def __init__(self, path: Path, image: Image, commit: Callable[[list[FileRecord]], None]) -> None:
        super().__init__(path, sync_files=True, overwrite=False)
        self._directory = path
        self._image = image
        self._commit = commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's image, and its plain values in a second file; both fsynced.

        A tensor that several ranks hold whole is planned for one of them; the others' copies are written too
        (they are in the image) and never read: inside a replica those are scalars.
        """
        prefix: str = plan.storage_data.prefix
        image_name, values_name = f"{prefix}0{DEFAULT_SUFFIX}", f"{prefix}1{DEFAULT_SUFFIX}"
        results: list[WriteResult] = []
        values = bytearray()
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                value = cast(Any, planner.resolve_data(item)).getbuffer()
                place, offset, length = values_name, len(values), len(value)
                values += value
            else:
                place = image_name
                offset, length = self._image.slots[item.index.fqn]
            # torch's reader looks for exactly this class: with any other, plain torch could not read the
            # files.
            results.append(WriteResult(item.index, length, _StorageInfo(place, offset, length)))
        records = []
        if self._image.slots:
            records.append(write_file(self._directory / image_name, self._image.content))
        if values:
            records.append(write_file(self._directory / values_name, memoryview(values)))
        future: Future[Any] = Future()
        future.set_result((records, results))  # both travel to the coordinator's `finish`
        return cast("Future[list[WriteResult]]", future)

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        """Coordinator only: write `.metadata`, then commit."""
        super().finish(metadata, [rank_results for _, rank_results in results])
        records = [record for rank_records, _ in results for record in rank_records]
        self._commit(records + file_records([self._directory / ".metadata"]))


def write_file(path: Path, content: memoryview) -> FileRecord:
    """Write and fsync the new file `path`; the hash is taken on the way. Raises OSError.

    Whole pages of page-aligned memory go to the disk directly: a checkpoint would only push the training data
    out of the page cache, and copying it there costs more processor time than all the rest.
    """
    direct = bool(_O_DIRECT) and len(content) % PAGE_BYTES == 0
    descriptor = _create(path, direct)
    digest = xxhash.xxh3_128()
    try:
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            digest.update(block)
            _write_all(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(path.name, len(content), digest.hexdigest())


def _create(path: Path, direct: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    if direct:
        try:
            return os.open(path, flags | _O_DIRECT, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without direct writes
                raise
            path.unlink(missing_ok=True)
    return os.open(path, flags, 0o644)


def _write_all(descriptor: int, block: memoryview) -> None:
    done = 0
    while done < len(block):
        try:
            done += os.write(descriptor, block[done:])
        except OSError as error:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            # Refused for its alignment (a coarser disk, or the rest of a write cut short): go through the
            # cache.
            if error.errno != errno.EINVAL or not flags & _O_DIRECT:
                raise
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_O_DIRECT)
