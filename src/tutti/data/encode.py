"""One shard: its text, read again, becomes a file of token numbers.

A shard is finished when its record (`NAME.json`, written last) is there; whoever finds one may rely on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tutti.core.errors import DataError
from tutti.core.files import write_json_atomically
from tutti.core.rundir import unwritable
from tutti.data.encoder import TextEncoder
from tutti.data.listing import SourceFile
from tutti.data.manifest import File, Shard
from tutti.data.npy import NpyWriter, write_npy
from tutti.data.reading import Mark, TextSettings
from tutti.data.segments import PlanOfPart
from tutti.data.settings import BATCH_CHARACTERS
from tutti.data.texts import SegmentReader


@dataclass(frozen=True)
class Job:
    """What all shards of a preparation share. `tokenizer_digest` names the tokenizer in `tokenizer`; `begin_token`: put
    before every document, `end_token`: behind."""

    directory: Path
    tokenizer: Path
    tokenizer_digest: str
    begin_token: int | None
    end_token: int
    token_bytes: NDArray[np.int64]
    settings: TextSettings

    def start(self) -> Callable[[ShardTask], Shard]:
        """As `processes.Job`."""
        encoder = TextEncoder(self.tokenizer)
        return lambda task: encode_shard(self, task, encoder)


@dataclass(frozen=True)
class ShardTask:
    """One shard to write; complete in itself, so that it can be sent to another process."""

    name: str
    digest: str
    files: list[SourceFile]
    marks: list[Mark]
    rows: NDArray[Any]

    @classmethod
    def of(cls, part: PlanOfPart, shard: int, files: list[SourceFile]) -> ShardTask:
        """Shard number `shard` of `part`, with only those files and marks that it needs."""
        rows = part.segments[part.bounds[shard] : part.bounds[shard + 1]].copy()
        used, rows["file"] = np.unique(rows["file"], return_inverse=True)
        marked = rows["mark"] >= 0
        used_marks, rows["mark"][marked] = np.unique(rows["mark"][marked], return_inverse=True)
        return cls(
            f"{part.name}-{shard:05d}",
            part.digest(shard),
            [files[number] for number in used.tolist()],
            [part.marks[number] for number in used_marks.tolist()],
            rows,
        )

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text, about."""
        return int(self.rows["bytes"].sum())


def find_finished(job: Job, name: str, digest: str) -> Shard | None:
    """The record of a shard that an earlier attempt finished with the same text and tokenizer; else None."""
    try:
        shard = Shard.model_validate(json.loads((job.directory / f"{name}.json").read_text(encoding="utf-8")))
        if shard.digest != digest or shard.tokenizer != job.tokenizer_digest:
            return None
        shard.tokens_file.verify(job.directory)
        shard.documents_file.verify(job.directory)
    except (OSError, ValueError, ValidationError):  # a DataError of `verify` is a ValueError
        return None
    return shard


def encode_shard(job: Job, task: ShardTask, encoder: TextEncoder) -> Shard:
    """Write the files and the record of one shard.

    Raises:
        DataError: the text changed, or contains what the tokenizer takes for its end token.
        RunError: the disk is full or the directory is read-only.
    """
    tokens_path = job.directory / f"{task.name}.npy"
    documents_path = job.directory / f"{task.name}.documents.npy"
    dtype = np.uint16 if len(job.token_bytes) <= 1 << 16 else np.uint32
    with NpyWriter(tokens_path, dtype) as writer:
        books = _Books(job, encoder, writer)
        reader = SegmentReader(task.files, task.marks, job.settings)
        try:
            for row in task.rows:
                books.segment(reader, row, task.files[row["file"]].name)
            books.flush()
        finally:
            reader.close()
    write_npy(documents_path, books.starts, np.int64)
    shard = Shard(
        tokens_file=File.of(tokens_path),
        documents_file=File.of(documents_path),
        tokens=writer.length,
        documents=len(books.starts),
        bytes=books.bytes,
        counted_bytes=books.counted_bytes,
        digest=task.digest,
        tokenizer=job.tokenizer_digest,
        unknown=books.unknown,
    )
    record = job.directory / f"{task.name}.json"
    try:
        write_json_atomically(record, shard.model_dump(mode="json"))
    except OSError as error:
        raise unwritable(record, error) from error
    return shard


class _Books:
    """Gathers pieces of text, encodes many at once, and keeps the books of one shard."""

    def __init__(self, job: Job, encoder: TextEncoder, writer: NpyWriter) -> None:
        self.starts: list[int] = []
        self.bytes = 0
        self.counted_bytes = 0
        self.unknown = 0
        self._job = job
        self._encoder = encoder
        self._writer = writer
        self._texts: list[str] = []
        self._begins: list[bool] = []
        self._ends: list[bool] = []
        self._names: list[str] = []
        self._held = 0

    def segment(self, reader: SegmentReader, row: Any, name: str) -> None:
        """Take up the text of one segment."""
        begins = bool(row["first"])
        for piece in reader.pieces(row):
            if self._held + len(piece) > BATCH_CHARACTERS:
                self.flush()
            self._texts.append(piece)
            self._begins.append(begins)
            self._ends.append(False)
            self._names.append(name)
            self._held += len(piece)
            begins = False
        self._ends[-1] = bool(row["last"])  # a segment is never empty

    def flush(self) -> None:
        """Encode and write what is held."""
        at = self._writer.length
        written: list[NDArray[np.int64]] = []
        end = np.array([self._job.end_token])
        begin = np.array([] if self._job.begin_token is None else [self._job.begin_token], dtype=np.int64)
        for index, ids in enumerate(self._encoder.encode(self._texts)):
            if (ids == self._job.end_token).any():
                raise DataError(
                    f"{self._names[index]} contains text that the tokenizer turns into its own end token",
                    "choose another tokenizer, or take that text out",
                )
            if self._begins[index]:
                self.starts.append(at)
                written.append(begin)
                at += len(begin)
            self.counted_bytes += int(self._job.token_bytes[ids].sum())
            self.bytes += len(self._texts[index].encode())
            if self._encoder.unknown is not None:
                self.unknown += int(np.count_nonzero(ids == self._encoder.unknown))
            written.append(ids)
            if self._ends[index]:
                written.append(end)
            at += len(ids) + self._ends[index]
        if written:
            self._writer.append(np.concatenate(written))
        for held in (self._texts, self._begins, self._ends, self._names):
            held.clear()
        self._held = 0
