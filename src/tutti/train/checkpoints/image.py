"""The staging buffer: an exact image of the file that a checkpoint will be.

Saving must take next to nothing from training, and most of what the stock writer of
torch.distributed.checkpoint spends is not the disk but the processor: one more serialised copy, a CRC, a pass
through the page cache and a pickle per tensor (for 165 MB in 224 tensors 0.47 processor seconds, measured on
one x86 core in 2026, against 0.08 this way). So the buffer that tensors are copied into is laid out as the
finished file. Around the place of each tensor stand the bytes that `torch.save` puts around a tensor of this
shape and dtype; they are made once. What remains per save is one memcpy while training waits, and, in the
background, one hash and one write straight from this memory. The result is a plain checkpoint of
torch.distributed.checkpoint that torch reads without Tutti.
"""

from __future__ import annotations

import copy
import mmap
import os
import tempfile
import zipfile
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

#: Granularity of direct writes; the image and its file are whole multiples of it.
PAGE_BYTES = 4096
#: Where `torch.save` aligns the data of a tensor, counted from the start of its archive.
_ALIGNMENT_BYTES = 64


class Slot(NamedTuple):
    """Where the archive of one tensor lies in the image (and in the file): offset and length in bytes."""

    offset: int
    length: int


class _Archive(NamedTuple):
    """The bytes that `torch.save` writes before and after the data of a tensor."""

    before: bytes
    after: bytes


class Image:
    """The part of a state that this process saves, as the bytes of its file; one buffer, used again."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: the buffer lies in a file there instead of in memory."""
        self._directory = directory
        self.slots: dict[str, Slot] = {}
        self._signature: tuple[Hashable, ...] | None = None
        self._targets: dict[str, Tensor] = {}
        self._memory: mmap.mmap | None = None

    @property
    def content(self) -> memoryview:
        """The whole image, page-aligned; empty when this process holds no tensor."""
        return memoryview(b"") if self._memory is None else memoryview(self._memory)

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy every tensor of `state` (of a DTensor: the local shard) into the image.

        Returns `state` with its plain values copied. Its tensors are still the live ones: they say names,
        shapes and placements to the planner; their content is read from the image alone.
        """
        local = {name: _local(tensor) for name, tensor in tensors_of(state)}
        signature = tuple((name, tuple(t.shape), t.dtype) for name, t in local.items())
        if signature != self._signature:
            self._lay_out(local)
            self._signature = signature
        for name, tensor in local.items():
            self._targets[name].copy_(tensor)
        frozen = _freeze(state)
        assert isinstance(frozen, dict)
        return frozen

    def _lay_out(self, local: Mapping[str, Tensor]) -> None:
        """Give every tensor its place, and write what stands around it."""
        archives: dict[tuple[torch.Size, torch.dtype], _Archive] = {}
        slots: dict[str, Slot] = {}
        end = 0
        for name, tensor in local.items():
            kind = (tensor.shape, tensor.dtype)
            if kind not in archives:
                archives[kind] = _archive_of(*kind)
            length = len(archives[kind].before) + tensor.nbytes + len(archives[kind].after)
            slots[name] = Slot(end, length)
            end += -(-length // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._targets = {}
        self._memory = None  # the old buffer goes before the new one comes
        self.slots = slots
        if not slots:
            return
        self._memory = _pages(-(-end // PAGE_BYTES) * PAGE_BYTES, self._directory)
        flat = torch.frombuffer(self._memory, dtype=torch.uint8)
        for name, tensor in local.items():
            archive, slot = archives[tensor.shape, tensor.dtype], slots[name]
            start = slot.offset + len(archive.before)
            stop = start + tensor.nbytes
            self._memory[slot.offset : start] = archive.before
            self._memory[stop : slot.offset + slot.length] = archive.after
            self._targets[name] = flat[start:stop].view(tensor.dtype).view(tensor.shape)


def tensors_of(state: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested state with its name: keys and list positions joined by dots, as in DCP."""
    if isinstance(state, Tensor):
        yield ".".join(path), state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from tensors_of(value, (*path, str(key)))
    elif isinstance(state, list):
        for position, value in enumerate(state):
            yield from tensors_of(value, (*path, str(position)))


def _freeze(value: object) -> object:
    """`value` with plain values copied, so that training may change them, and tensors left as they are."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: _freeze(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_freeze(item) for item in value]
    return copy.deepcopy(value)


def _local(tensor: Tensor) -> Tensor:
    shard = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shard.detach()


def _pages(size_bytes: int, directory: Path | None) -> mmap.mmap:
    """Page-aligned memory: of a file without a name in `directory`, or private and in huge pages where the kernel has
    them (cheaper to touch first)."""
    if directory is not None:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(
                file.fileno(), 0, size_bytes
            )  # a full disk is an error here, a crash when written to
            return mmap.mmap(file.fileno(), size_bytes)
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _scratch() -> IO[bytes]:
    """A sparse file, in memory where possible: archives are made as long as the tensor but hardly written."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("archive"), "w+b")
    return tempfile.TemporaryFile()


def _archive_of(shape: torch.Size, dtype: torch.dtype) -> _Archive:
    """What `torch.save` writes around a tensor: it leaves a gap for the data, which is then looked up."""
    with _scratch() as file:
        with torch.serialization.skip_data():
            torch.save(torch.empty(shape, dtype=dtype), file)
        with zipfile.ZipFile(file) as archive:
            (record,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data/0")]
        # A local file header (zip, section 4.3.7) is 30 bytes, a name and an extra field; lengths at 26 and
        # 28.
        file.seek(record.header_offset + 26)
        lengths = file.read(4)
        name_bytes, extra_bytes = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
        start = record.header_offset + 30 + name_bytes + extra_bytes
        file.seek(0)
        before = file.read(start)
        file.seek(start + record.file_size)
        return _Archive(before, file.read())
