"""The index of prepared text: what there is, how large it is, and the hash of every file.

`manifest.json` is written last, so a directory that has one is complete. It carries a digest of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tutti.core.errors import DataError
from tutti.core.files import write_json_atomically
from tutti.data.settings import FORMAT

NAME = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Record):
    """A file of prepared text: its size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> File:
        """Measure the file at `path`."""
        return cls(name=name or path.name, size=path.stat().st_size, sha256=sha256_of(path))

    def is_there(self, directory: Path) -> bool:
        """Whether the file has its size (its content is not read)."""
        path = directory / self.name
        return path.is_file() and path.stat().st_size == self.size

    def verify(self, directory: Path) -> None:
        """Raises DataError when the file is missing or any byte of it is not what was written."""
        path = directory / self.name
        if not path.is_file():
            raise DataError(f"{path} is missing", "run again: `tutti prepare` rebuilds what is missing")
        if path.stat().st_size != self.size or sha256_of(path) != self.sha256:
            raise DataError(f"{path} is corrupted", "delete this file and run again: only it is rebuilt")


class Shard(_Record):
    """A stretch of the token stream. `bytes`: UTF-8 bytes of its text; `counted_bytes`: as its tokens add up.

    `documents`: how many begin here (a long document may span shards). `digest`: of the stretches of text. `unknown`:
    tokens that stand for what the tokenizer does not know.
    """

    tokens_file: File
    documents_file: File
    tokens: int
    documents: int
    bytes: int
    counted_bytes: int
    digest: str
    tokenizer: str
    unknown: int = 0


class Split(_Record):
    """One part of the corpus."""

    tokens: int
    documents: int
    bytes: int
    shards: tuple[Shard, ...]


class Skipped(_Record):
    """A file, or a row of one, that was left out."""

    name: str
    reason: str


class Counts(_Record):
    """What was read and left out. `in_validation`: documents that are also in `validation_source`.

    `unreadable`: files and rows that cannot be read, of which `skipped` names the first.
    """

    files: int
    documents: int
    empty: int
    duplicates: int
    in_validation: int
    unreadable: int
    skipped: tuple[Skipped, ...]


class Example(_Record):
    """A document that was changed or left out: where it stands, and some of it."""

    where: str
    text: str


class StepReport(_Record):
    """What a step of reading or cleaning did: documents seen, changed, left out; bytes of UTF-8 that it took out.

    `reasons`: how often what was found, or why documents were left out.
    """

    step: str
    seen: int
    changed: int
    dropped: int
    bytes: int
    reasons: dict[str, int]
    examples: tuple[Example, ...]


def left_out(counts: Counts, steps: Sequence[StepReport]) -> str:
    """What is not in the text, and why, in a sentence."""
    said = {"read", "duplicates"}  # among the others
    left = [
        f"{number:,} {what}"
        for number, what in (
            (counts.duplicates, "duplicates"),
            (counts.in_validation, "also in validation"),
            (counts.empty, "empty"),
            (counts.unreadable, "unreadable"),
        )
        if number
    ]
    left += [f"{step.dropped:,} by {step.step}" for step in steps if step.dropped and step.step not in said]
    return f"left out: {', '.join(left)}" if left else "nothing left out"


class Manifest(_Record):
    """Everything about prepared text but the text."""

    format: int
    fingerprint: str
    vocabulary: int
    end_token: int
    tokenizer: tuple[File, ...]
    token_bytes: File
    splits: dict[str, Split]
    choices: tuple[str, ...]
    counts: Counts
    steps: tuple[StepReport, ...] = ()

    def files(self) -> list[File]:
        """Every file that belongs to the prepared text."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        pairs = [file for shard in shards for file in (shard.tokens_file, shard.documents_file)]
        return [*self.tokenizer, self.token_bytes, *pairs]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Make `directory` complete."""
    value = manifest.model_dump(mode="json")
    write_json_atomically(directory / NAME, {"digest": _digest(value), "manifest": value})


def read_manifest(directory: Path) -> Manifest:
    """Raises DataError when the directory is incomplete, its index damaged, or a file not of its size."""
    path = directory / NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"there is no prepared text at {directory} (no {NAME})", "run `tutti prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(value, dict) or value.get("digest") != _digest(value.get("manifest")):
        raise _damaged(path)
    try:
        manifest = Manifest.model_validate(value["manifest"])
    except ValidationError as error:
        raise _damaged(path) from error
    if manifest.format != FORMAT:
        raise DataError(
            f"{directory} was written in format {manifest.format}, this is {FORMAT}", "prepare it again"
        )
    for file in manifest.files():
        if not file.is_there(directory):
            raise DataError(
                f"{directory / file.name} is missing or has not its size of {file.size} bytes",
                "run again: `tutti prepare` rebuilds it",
            )
    return manifest


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is corrupted", "delete this file and run again: what is whole is kept")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
