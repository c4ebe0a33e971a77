"""What makes a directory a checkpoint: `MANIFEST.json`, and the pointers `LATEST` and `BEST` that name one.

The manifest lists every file with its size and hash and is written last, so a directory without one is torn.
It is sealed: its last value is the hash of its own text (taken with zeros in the seal's place), so that a
flipped byte anywhere in it is found as well. A pointer is two lines, the directory's name and the seal of its
manifest; a damaged pointer therefore never names another checkpoint by accident.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from tutti.core.files import fsync_directory, write_text_atomically

MANIFEST = "MANIFEST.json"
LATEST = "LATEST"
BEST = "BEST"

#: Read and written at once: large enough that hashing (which releases the GIL) dominates, small for any
#: memory.
BLOCK_BYTES = 8 << 20

_FORMAT = 1
_ZEROS = "0" * 32


class Damaged(Exception):
    """A file of a checkpoint is not what was written; the text says which and how."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its name inside the directory, its size and the hash of its content."""

    name: str
    size_bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """The table of contents of one checkpoint.

    `sequence` counts the saves of a run: it orders checkpoints by when they were written, which is not the
    order of steps once a run has gone back to an earlier one. `versions`: of the packages that wrote it.
    """

    step: int
    sequence: int
    files: tuple[FileRecord, ...]
    meta: dict[str, Any]
    versions: dict[str, str]
    seal: str = ""

    @property
    def size_bytes(self) -> int:
        """All files together, without the manifest."""
        return sum(record.size_bytes for record in self.files)


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Seal `manifest` and make it the last file of `directory`; returns it with its seal."""
    fsync_directory(directory)  # the files that it vouches for come first
    fsync_directory(directory.parent)
    content = {
        "format": _FORMAT,
        "step": manifest.step,
        "sequence": manifest.sequence,
        "saved_at": round(time.time(), 3),
        "versions": manifest.versions,
        "bytes": manifest.size_bytes,
        "meta": manifest.meta,
        "files": {r.name: {"bytes": r.size_bytes, "xxh3_128": r.xxh3_128} for r in manifest.files},
        "seal": _ZEROS,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    seal = xxhash.xxh3_128(text.encode()).hexdigest()
    head, tail = text.rsplit(_ZEROS, 1)
    write_text_atomically(directory / MANIFEST, head + seal + tail)
    return Manifest(manifest.step, manifest.sequence, manifest.files, manifest.meta, manifest.versions, seal)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint at `directory`.

    Raises:
        Damaged: there is none, or it is not the text that was sealed.
    """
    try:
        raw = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise Damaged(f"it was not finished (no {MANIFEST})") from None
    except OSError as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error.strerror}") from error
    try:
        content = json.loads(raw.decode())
        seal = content["seal"].encode()
        head, tail = raw.rsplit(seal, 1)
        if xxhash.xxh3_128(head + _ZEROS.encode() + tail).hexdigest().encode() != seal:
            raise Damaged(f"{MANIFEST} was changed after it was written")
        if content["format"] != _FORMAT:
            raise Damaged(f"{MANIFEST} has format {content['format']}; this version reads {_FORMAT}")
        files = tuple(FileRecord(n, f["bytes"], f["xxh3_128"]) for n, f in content["files"].items())
        return Manifest(
            content["step"], content["sequence"], files, content["meta"], content["versions"], seal.decode()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} was changed after it was written") from None


def hash_file(path: Path) -> str:
    """xxh3_128 of the content of `path`, in hexadecimal; as fast as memory, so a check costs the reading."""
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(min(BLOCK_BYTES, path.stat().st_size + 1)))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def verify(directory: Path) -> Manifest:
    """Read every file of the checkpoint at `directory` and compare it with its manifest, which is returned.

    Raises:
        Damaged: a file is missing, has another size or another content; the text names it.
    """
    manifest = read_manifest(directory)
    for record in manifest.files:
        path = directory / record.name
        try:
            size = path.stat().st_size
            if size != record.size_bytes:
                raise Damaged(f"{record.name} has {size} bytes instead of {record.size_bytes}")
            if hash_file(path) != record.xxh3_128:
                raise Damaged(f"the content of {record.name} was changed after it was written")
        except FileNotFoundError:
            raise Damaged(f"{record.name} is missing") from None
        except OSError as error:
            raise Damaged(f"{record.name} cannot be read: {error.strerror}") from error
    return manifest


def write_pointer(pointer: Path, directory: Path, manifest: Manifest) -> None:
    """Let `pointer` (`LATEST` or `BEST`) name `directory`, atomically."""
    write_text_atomically(pointer, f"{directory.name}\n{manifest.seal}\n")


def read_pointer(pointer: Path) -> Path | None:
    """The checkpoint that `pointer` names; None when there is no such pointer yet.

    Raises:
        Damaged: its text is not what was written, or the checkpoint it was written for is gone or damaged.
    """
    try:
        text = pointer.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{pointer.name} cannot be read: {error.strerror}") from error
    lines = text.decode(errors="replace").split("\n")
    # A flipped bit can turn a name into any text: it must not lead out of the directory or to a strange one.
    if len(lines) != 3 or lines[2] or not lines[0] or Path(lines[0]).name != lines[0] or "\0" in lines[0]:
        raise Damaged(f"{pointer.name} was changed after it was written")
    directory = pointer.parent / lines[0]
    try:
        manifest = read_manifest(directory)
    except Damaged as damage:
        raise Damaged(f"{pointer.name} names {lines[0]!r}, but {damage}") from None
    if manifest.seal != lines[1]:
        raise Damaged(f"{pointer.name} was changed after it was written")
    return directory


def file_records(paths: Iterable[Path]) -> list[FileRecord]:
    """Records of small files, read back from the disk."""
    return [FileRecord(path.name, path.stat().st_size, hash_file(path)) for path in paths]
