"""First pass over the text: one row per document, with the hash of its content. No text is kept.

Exact duplicates are found here, and the hashes decide later to which part a document belongs. A row takes
52 bytes: the catalogue of ten million documents takes half a gigabyte of memory, however long they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import DataError
from tutti.data.compressed import READ_ERRORS
from tutti.data.content import Digest, Hash, halves, start_digest
from tutti.data.listing import SourceFile, UnreadableFile, open_binary, unreadable
from tutti.data.pieces import pieces
from tutti.data.reading import BadText, Mark, TextSettings, read_lines, read_python, read_text, text_of_line
from tutti.data.settings import SEGMENT_CHARACTERS
from tutti.data.skips import Skips
from tutti.data.sources import lines
from tutti.data.staging import StagedUnit

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


class Cut(NamedTuple):
    """A segment of a document: its first character, the nearest mark before it, and the hash of its text."""

    start: int
    mark: Mark
    hash: Hash


@dataclass
class Catalogue:
    """What the first pass found.

    `cuts`: the segments of each document that is longer than one.
    `skipped`: what could not be read. `empty`: documents without any text. `usable`: [rows] False for those of a
    file that turned out to be damaged. `units`: what was read of them by `staging`, in order.
    """

    files: list[SourceFile]
    rows: NDArray[Any]
    cuts: dict[int, list[Cut]] = field(default_factory=dict)
    skipped: Skips = field(default_factory=Skips)
    empty: int = 0
    usable: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, dtype=bool))
    units: list[StagedUnit] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int(self.rows["bytes"].sum())

    def unit_starts(self) -> Iterator[tuple[StagedUnit, int]]:
        """Every unit, and its first row."""
        numbers = {file.name: number for number, file in enumerate(self.files)}
        for unit in self.units:
            yield unit, int(np.searchsorted(self.rows["file"], numbers[str(unit.text)]))

    def entries(self) -> NDArray[np.int16]:
        """[rows] → the number of the entry of `source` that a document comes from."""
        of_files = np.array([file.entry for file in self.files], np.int16)
        entries: NDArray[np.int16] = of_files[self.rows["file"]]
        for unit, first in self.unit_starts():
            of_parts = np.array([stretch.file.entry for stretch in unit.unit.stretches], np.int16)
            entries[first : first + unit.record.documents] = of_parts[unit.rows()["part"]]
        return entries

    def place(self, row: int) -> str:
        """Where a document stands, in words."""
        for unit, first in self.unit_starts():
            if first <= row < first + unit.record.documents:
                ready = unit.rows()[row - first]
                return unit.unit.stretches[int(ready["part"])].place(int(ready["number"]))
        return self.files[int(self.rows["file"][row])].name

    def text(self, row: int) -> str:
        """A document that was made ready."""
        found = self.rows[row]
        with open_binary(self.files[int(found["file"])].name) as file:
            file.seek(int(found["offset"]))
            return file.read(int(found["length"])).decode()


def scan(
    items: Sequence[SourceFile | StagedUnit], settings: TextSettings, say: Callable[[str], None]
) -> Catalogue:
    """Read every file once, and take up what was made ready.

    Raises:
        DataError: see `reading`; also an empty file that the user named himself.
    """
    scanner = _Scanner(settings)
    files: list[SourceFile] = []
    for number, item in enumerate(items):
        if isinstance(item, StagedUnit):
            files.append(item.file())
            scanner.ready(number, item)
            continue
        files.append(item)
        before = scanner.mark()
        try:
            if item.kind == "jsonl":
                scanner.jsonl(number, item)
            else:
                scanner.whole_file(number, item)
        except UnreadableFile:
            if settings.on_bad_file != "skip":
                raise
            scanner.forget(item, before)
        if item.explicit and scanner.found_nothing_since(before):
            raise DataError(f"{item.name} is empty", "name a file that holds text")
        if (number + 1) % 5000 == 0:
            say(f"read {number + 1} of {len(items)} files")
    units = [item for item in items if isinstance(item, StagedUnit)]
    rows = scanner.rows()
    return Catalogue(
        files, rows, scanner.cuts, scanner.skipped, scanner.empty, _usable(files, rows, units), units
    )


def _usable(files: list[SourceFile], rows: NDArray[Any], units: list[StagedUnit]) -> NDArray[np.bool_]:
    """[rows] → whether the file of a document was readable in all its stretches."""
    usable = np.ones(len(rows), dtype=bool)
    failed = {unit.unit.stretches[part].file.name for unit in units for part in unit.record.failed}
    numbers = {file.name: number for number, file in enumerate(files)}
    for unit in units if failed else ():
        lost = [part for part, stretch in enumerate(unit.unit.stretches) if stretch.file.name in failed]
        if lost:
            usable[rows["file"] == numbers[str(unit.text)]] = ~np.isin(unit.rows()["part"], lost)
    return usable


def unique(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n, 2] → [n]: True for the first of all equal rows."""
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    keep = np.ones(len(hashes), dtype=bool)
    keep[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return keep


def contained(hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n, 2], [m, 2] → [n]: True where the row is one of `among`."""
    found = np.isin(hashes[:, 0], among[:, 0])  # nearly all of it, without an object for every number
    known = {tuple(row) for row in among.tolist()}
    maybe = np.flatnonzero(found)
    found[maybe] = [tuple(row) in known for row in hashes[maybe].tolist()]
    return found


class _Scanner:
    """Collects rows; full blocks of them become arrays, since a Python tuple takes five times the memory."""

    def __init__(self, settings: TextSettings) -> None:
        self.settings = settings
        self.documents = 0
        self.empty = 0
        self.cuts: dict[int, list[Cut]] = {}
        self.skipped = Skips()
        self._blocks: list[NDArray[Any]] = []
        self._open: list[tuple[int, int, int, int, int, Hash]] = []

    def rows(self) -> NDArray[Any]:
        return np.concatenate([*self._blocks, np.array(self._open, dtype=ROW)])

    def mark(self) -> tuple[int, int, Skips]:
        """Documents, empty ones, and what was skipped so far."""
        return self.documents, self.empty, self.skipped.copy()

    def found_nothing_since(self, mark: tuple[int, int, Skips]) -> bool:
        """Neither a document nor what had to be skipped."""
        return (self.documents, self.skipped.number) == (mark[0], mark[2].number)

    def ready(self, number: int, unit: StagedUnit) -> None:
        self._close_block()
        of_unit = unit.rows()
        block = np.empty(len(of_unit), dtype=ROW)
        for name in ("offset", "length", "characters", "hash"):
            block[name] = of_unit[name]
        block["file"], block["bytes"] = number, of_unit["length"]
        self._blocks.append(block)
        self.documents += len(block)
        self.empty += unit.record.empty
        self.skipped.extend(unit.record.unreadable, unit.record.skipped)

    def forget(self, file: SourceFile, mark: tuple[int, int, Skips]) -> None:
        """`file` is left out: back to `mark`, before it."""
        documents, self.empty, self.skipped = mark
        self.skipped.add(file.name, "unreadable")
        self._blocks, self._open = [self.rows()[:documents]], []
        self.cuts = {row: cuts for row, cuts in self.cuts.items() if row < documents}
        self.documents = documents

    def whole_file(self, number: int, file: SourceFile) -> None:
        digest, characters, size = start_digest(), 0, 0
        of_segment, begins = digest, (0, Mark())  # the document is its only segment as yet
        cuts: list[Cut] = []
        marks = [Mark()]
        try:
            for piece in pieces(self._chunks(file, marks)):
                if characters - begins[0] >= SEGMENT_CHARACTERS:
                    cuts.append(Cut(*begins, halves(of_segment)))
                    del marks[: max(i for i, mark in enumerate(marks) if mark.characters <= characters)]
                    of_segment, begins = start_digest(), (characters, marks[0])
                data = piece.encode()
                digest.update(data)
                if cuts:
                    of_segment.update(data)
                characters += len(piece)
                size += len(data)
        except BadText as error:
            if self.settings.on_bad_encoding != "skip" and file.kind != "python":
                raise
            self.skipped.add(file.name, error.reason)
            return
        if cuts:
            cuts.append(Cut(*begins, halves(of_segment)))
        self._add(number, 0, 0, characters, size, digest, cuts)

    def _chunks(self, file: SourceFile, marks: list[Mark]) -> Iterator[str]:
        if file.kind == "python":
            yield from read_python(file.name)
            return
        for chunk, mark in read_text(file.name, self.settings):
            marks.append(mark)
            yield chunk

    def jsonl(self, number: int, file: SourceFile) -> None:
        with open_binary(file.name, self.settings.remote) as stream:
            try:
                for line_number, offset, line in read_lines(stream):
                    try:
                        text = text_of_line(file.name, line_number, offset, line, self.settings)
                    except DataError as error:
                        reason = lines.left_out(error, self.settings)
                        if reason is None:
                            raise
                        self.skipped.add(f"{file.name}:{line_number}", reason)
                        continue
                    data = text.encode()
                    digest = start_digest(data)
                    self._add(number, offset, len(line), len(text), len(data), digest, [])
            except READ_ERRORS as error:
                raise unreadable(file.name, error) from error

    def _add(
        self,
        file: int,
        offset: int,
        length: int,
        characters: int,
        size: int,
        digest: Digest,
        cuts: list[Cut],
    ) -> None:
        if characters == 0:
            self.empty += 1
            return
        self._open.append((file, offset, length, characters, size, halves(digest)))
        if cuts:
            self.cuts[self.documents] = cuts
        self.documents += 1
        if len(self._open) >= 65536:
            self._close_block()

    def _close_block(self) -> None:
        self._blocks.append(np.array(self._open, dtype=ROW))
        self._open = []
