"""What every source gives: documents, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tutti.core.address import without_secrets
from tutti.data.compressed import inner_name
from tutti.data.listing import Kind, SourceFile
from tutti.data.settings import CODE_ENDINGS


@dataclass(frozen=True)
class Stretch:
    """A part of a file that is read by itself.

    [start, stop): bytes of a JSONL file (lines that begin there), row groups of a Parquet table; of all others
    the whole file, 0 and -1.
    """

    file: SourceFile
    start: int = 0
    stop: int = -1

    @property
    def kind(self) -> Kind:
        """Of its text: also `code` where the file is read as text, and ends as source code does."""
        ends = inner_name(self.file.name).lower().endswith(CODE_ENDINGS)
        return "code" if ends and self.file.kind == "text" else self.file.kind

    def place(self, number: int) -> str:
        """In words: row `number`, counted from 1 where the stretch begins; 0: the whole file."""
        name, kind = without_secrets(self.file.name), self.file.kind
        if not number:
            return name
        if kind in ("jsonl", "csv", "tsv"):
            return f"{name}:{number}" + (f" after byte {self.start:,}" if self.start else "")
        if kind == "parquet" and self.start:
            return f"{name}, row {number} after row group {self.start}"
        return f"{name}, {'row' if kind in ('parquet', 'hub', 'json') else 'part'} {number}"


class Document(NamedTuple):
    """One text and its number as `Stretch.place` takes it."""

    text: str
    number: int = 0


class Bad(NamedTuple):
    """A row that was left out, and why, in short."""

    number: int
    reason: str
