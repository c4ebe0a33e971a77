"""From documents to shards: a table of segments in stream order, and which of them make a shard.

A segment is a document, one end of it (`split: tail`), or a stretch of a very long one. It knows where its
text lies, so that any process can encode any shard without having read what comes before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.data.reading import Mark
from tutti.data.scan import Catalogue, Cut
from tutti.data.settings import PARTS, SHARD_TEXT_BYTES, SHARDS_OF_A_PART
from tutti.data.split import tail_bounds

#: `mark`: which of the plan's marks to start decoding from, -1 for the file's beginning. [start, stop):
#: characters of the document. `hash`: of the segment with what is left out `before` and `behind` it, in characters
#: (in `tail`: of other shares). `first`, `last`: whether a document (in `tail`: its share) begins or ends here.
SEGMENT = np.dtype(
    [
        ("file", "<i4"),
        ("offset", "<i8"),
        ("length", "<i8"),
        ("mark", "<i4"),
        ("start", "<i8"),
        ("stop", "<i8"),
        ("bytes", "<i8"),
        ("hash", "<u8", 2),
        ("before", "<u4"),
        ("behind", "<u4"),
        ("first", "?"),
        ("last", "?"),
    ]
)


@dataclass
class PlanOfPart:
    """The segments of one part in stream order; shard k is `segments[bounds[k]:bounds[k + 1]]`."""

    name: str
    segments: NDArray[Any]
    bounds: list[int]
    marks: list[Mark] = field(default_factory=list)

    @property
    def shards(self) -> int:
        """How many shards the part has."""
        return len(self.bounds) - 1

    def digest(self, shard: int) -> str:
        """Names what is in a shard by the content of its text, not by where the text lies."""
        rows = self.segments[self.bounds[shard] : self.bounds[shard + 1]]
        fields = ("start", "stop", "hash", "first", "last")
        return hashlib.blake2b(b"".join(rows[name].tobytes() for name in fields), digest_size=16).hexdigest()


def plan_parts(
    catalogue: Catalogue,
    kept: NDArray[np.bool_],
    parts: NDArray[np.int8] | None,
    shares: tuple[float, float],
    times: NDArray[np.int32] | None = None,
) -> dict[str, PlanOfPart]:
    """Segments of train, validation and test.

    `kept`: [documents]; `parts`: [documents] as from `split.assign`, or None for a split by tails with the
    shares (validation, test). `times`: [documents] how often each is trained on, None: once.
    """
    marks = _Marks()
    if parts is None:
        tables = _tails(catalogue, kept, shares, times, marks)
    else:
        tables = [
            _whole(catalogue, np.flatnonzero(kept & (parts == part)), times if part == 0 else None, marks)
            for part in range(len(PARTS))
        ]
    return {
        name: PlanOfPart(name, table, _bounds(table["bytes"]), marks.all)
        for name, table in zip(PARTS, tables, strict=True)
    }


class _Marks:
    """`all` that are referred to, each once."""

    def __init__(self) -> None:
        self.all: list[Mark] = []
        self._numbers: dict[Mark, int] = {}

    def number(self, mark: Mark) -> int:
        """Its place in `all`; -1: the beginning of a file."""
        if mark.byte == 0:
            return -1
        if mark not in self._numbers:
            self._numbers[mark] = len(self.all)
            self.all.append(mark)
        return self._numbers[mark]


def _tails(
    catalogue: Catalogue,
    kept: NDArray[np.bool_],
    shares: tuple[float, float],
    times: NDArray[np.int32] | None,
    marks: _Marks,
) -> list[NDArray[Any]]:
    """The segments of each part where that has an end of every document."""
    rows: list[list[tuple[Any, ...]]] = [[] for _ in PARTS]
    owners: list[int] = []
    for document in np.flatnonzero(kept).tolist():
        file, offset, length, characters, size, _ = catalogue.rows[document].tolist()
        bounds = tail_bounds(characters, *shares)
        for part in range(len(PARTS)):
            start, stop = bounds[part], bounds[part + 1]
            for low, high, cut, behind in _segments_of(catalogue, document, start, stop):
                share = size * (high - low) // characters
                whole = (cut.hash, low - cut.start, behind)
                ends = (low == start, high == stop)
                rows[part].append(
                    (file, offset, length, marks.number(cut.mark), low, high, share, *whole, *ends)
                )
                if part == 0:
                    owners.append(document)
    tables = [np.array(of_part, dtype=SEGMENT) for of_part in rows]
    if times is not None:
        tables[0] = tables[0][_repeated(times[np.array(owners, dtype=np.int64)])]
    return tables


def _whole(
    catalogue: Catalogue, documents: NDArray[np.int64], times: NDArray[np.int32] | None, marks: _Marks
) -> NDArray[Any]:
    """The segments of `documents`, most of which are one: millions of rows without an object for each."""
    if times is not None:
        documents = documents[_repeated(times[documents])]
    long = np.flatnonzero(np.isin(documents, np.array([*catalogue.cuts], dtype=np.int64)))
    of_long = [
        list(_segments_of(catalogue, number, 0, int(catalogue.rows["characters"][number])))
        for number in documents[long].tolist()
    ]
    counts = np.ones(len(documents), np.int64)
    counts[long] = [len(some) for some in of_long]
    of_document = catalogue.rows[documents]
    table = np.zeros(len(documents), dtype=SEGMENT)
    for field_name in ("file", "offset", "length", "bytes", "hash"):
        table[field_name] = of_document[field_name]
    table["mark"], table["stop"] = -1, of_document["characters"]
    table["first"] = table["last"] = True
    table, firsts = np.repeat(table, counts), np.cumsum(counts) - counts
    for first, segments in zip(firsts[long].tolist(), of_long, strict=True):
        size, characters = int(table["bytes"][first]), segments[-1][1]
        for row, (low, high, cut, _) in zip(table[first : first + len(segments)], segments, strict=True):
            row["mark"], row["start"], row["stop"] = marks.number(cut.mark), low, high
            row["hash"] = cut.hash
            row["bytes"] = size * (high - low) // characters
            row["first"], row["last"] = low == 0, high == characters
    return table


def _repeated(times: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n] → which of n to take, one round after the other: in round r those that are taken more than r times."""
    rounds = [np.flatnonzero(times > done) for done in range(int(times.max(initial=0)))]
    return np.concatenate([*rounds, np.zeros(0, np.int64)]).astype(np.int64)


def _segments_of(
    catalogue: Catalogue, document: int, start: int, stop: int
) -> Iterator[tuple[int, int, Cut, int]]:
    """Characters [start, stop) of a document, cut; each piece with the segment that it is (a part) of, and how much of
    that is behind it."""
    row = catalogue.rows[document]
    cuts = catalogue.cuts.get(document) or [Cut(0, Mark(), tuple(row["hash"].tolist()))]
    for cut, end in zip(cuts, [*(cut.start for cut in cuts[1:]), int(row["characters"])], strict=True):
        low, high = max(cut.start, start), min(end, stop)
        if low < high:
            yield low, high, cut, end - high


def _bounds(sizes: NDArray[np.int64]) -> list[int]:
    """Shards of about equal size, not far above the size aimed at."""
    total = int(sizes.sum())
    aim = max(SHARD_TEXT_BYTES, total // SHARDS_OF_A_PART)
    each = total / max(1, -(-total // aim))
    bounds, seen = [0], 0
    for index, size in enumerate(sizes.tolist()):
        if index and seen >= len(bounds) * each:
            bounds.append(index)
        seen += size
    return [*bounds, len(sizes)] if len(sizes) else [0]
