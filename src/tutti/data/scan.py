"""First pass over the text: one row per document, with the hash of its content. No text is kept.

Exact duplicates are found here, and the hashes decide later to which part a document belongs. A row takes
52 bytes: the catalogue of ten million documents takes half a gigabyte of memory, however long they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import DataError
from tutti.data.listing import SourceFile, open_binary, unreadable
from tutti.data.pieces import pieces
from tutti.data.reading import BadText, Mark, TextSettings, read_lines, read_python, read_text, text_of_line
from tutti.data.settings import SEGMENT_CHARACTERS

#: `offset`, `length`: bytes of the JSONL line in its file (0 for a file that is one document).
#: `bytes`: of the text in UTF-8. `hash`: 128 bits of BLAKE2b of these bytes.
ROW = np.dtype(
    [
        ("file", "<i4"),
        ("offset", "<i8"),
        ("length", "<i8"),
        ("characters", "<i8"),
        ("bytes", "<i8"),
        ("hash", "<u8", 2),
    ]
)


@dataclass
class Catalogue:
    """What the first pass found.

    `cuts`: for a document longer than one segment, where its later segments start: (character, nearest mark).
    `skipped`: (file or file:line, reason). `empty`: documents without any text.
    """

    files: list[SourceFile]
    rows: NDArray[Any]
    cuts: dict[int, list[tuple[int, Mark]]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    empty: int = 0

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int(self.rows["bytes"].sum())


def scan(files: Sequence[SourceFile], settings: TextSettings, say: Callable[[str], None]) -> Catalogue:
    """Read every file once.

    Raises:
        DataError: see `reading`; also an empty file that the user named himself.
    """
    scanner = _Scanner(settings)
    for number, file in enumerate(files):
        before = scanner.documents
        if file.kind == "jsonl":
            scanner.jsonl(number, file)
        else:
            scanner.whole_file(number, file)
        if file.explicit and scanner.documents == before and not scanner.skipped_any_of(file):
            raise DataError(f"{file.name} is empty", "name a file that holds text")
        if (number + 1) % 5000 == 0:
            say(f"read {number + 1} of {len(files)} files")
    return Catalogue(list(files), scanner.rows(), scanner.cuts, scanner.skipped, scanner.empty)


def unique(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n, 2] → [n]: True for the first of all equal rows."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    keep = np.ones(len(hashes), dtype=bool)
    keep[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return keep


def contained(hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n, 2], [m, 2] → [n]: True where the row is one of `among`."""
    known = {tuple(row) for row in among.tolist()}
    return np.fromiter((tuple(row) in known for row in hashes.tolist()), dtype=bool, count=len(hashes))


class _Scanner:
    """Collects rows; full blocks of them become arrays, since a Python tuple takes five times the memory."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self.documents = 0
        self.empty = 0
        self.cuts: dict[int, list[tuple[int, Mark]]] = {}
        self.skipped: list[tuple[str, str]] = []
        self._blocks: list[NDArray[Any]] = []
        self._open: list[tuple[int, int, int, int, int, tuple[int, int]]] = []

    def rows(self) -> NDArray[Any]:
        return np.concatenate([*self._blocks, np.array(self._open, dtype=ROW)])

    def skipped_any_of(self, file: SourceFile) -> bool:
        return bool(self.skipped) and self.skipped[-1][0].startswith(file.name)

    def whole_file(self, number: int, file: SourceFile) -> None:
        digest, characters, size = hashlib.blake2b(digest_size=16), 0, 0
        cuts: list[tuple[int, Mark]] = []
        marks = [Mark()]
        try:
            segment = 0
            for piece in pieces(self._chunks(file, marks)):
                if segment >= SEGMENT_CHARACTERS:
                    del marks[: max(i for i, mark in enumerate(marks) if mark.characters <= characters)]
                    cuts.append((characters, marks[0]))
                    segment = 0
                data = piece.encode()
                digest.update(data)
                characters += len(piece)
                segment += len(piece)
                size += len(data)
        except BadText as error:
            if self.settings.on_bad_encoding != "skip" and file.kind != "python":
                raise
            self.skipped.append((file.name, error.reason))
            return
        self._add(number, 0, 0, characters, size, digest, cuts)

    def _chunks(self, file: SourceFile, marks: list[Mark]) -> Iterator[str]:
        if file.kind == "python":
            yield from read_python(file.name)
            return
        for chunk, mark in read_text(file.name, self.settings):
            marks.append(mark)
            yield chunk

    def jsonl(self, number: int, file: SourceFile) -> None:
        with open_binary(file.name) as stream:
            try:
                for line_number, offset, line in read_lines(stream):
                    try:
                        text = text_of_line(file.name, line_number, offset, line, self.settings)
                    except BadText as error:
                        if self.settings.on_bad_encoding != "skip":
                            raise
                        self.skipped.append((f"{file.name}:{line_number}", error.reason))
                        continue
                    data = text.encode()
                    digest = hashlib.blake2b(data, digest_size=16)
                    self._add(number, offset, len(line), len(text), len(data), digest, [])
            except OSError as error:
                raise unreadable(file.name, error) from error

    def _add(
        self,
        file: int,
        offset: int,
        length: int,
        characters: int,
        size: int,
        digest: hashlib.blake2b,
        cuts: list[tuple[int, Mark]],
    ) -> None:
        if characters == 0:
            self.empty += 1
            return
        raw = digest.digest()
        halves = (int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"))
        self._open.append((file, offset, length, characters, size, halves))
        if cuts:
            self.cuts[self.documents] = cuts
        self.documents += 1
        if len(self._open) >= 65536:
            self._blocks.append(np.array(self._open, dtype=ROW))
            self._open = []
