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
from tutti.data.scan import Catalogue
from tutti.data.settings import PARTS, SHARD_TEXT_BYTES, SHARDS_OF_A_PART
from tutti.data.split import tail_bounds

#: `mark`: which of the plan's marks to start decoding from, -1 for the file's beginning. [start, stop):
#: characters of the document. `first`, `last`: whether a document (in `tail`: its share) begins or ends here.
SEGMENT = np.dtype(
    [
        ("file", "<i4"),
        ("offset", "<i8"),
        ("length", "<i8"),
        ("mark", "<i4"),
        ("start", "<i8"),
        ("stop", "<i8"),
        ("bytes", "<i8"),
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
        """Names what is in a shard by stretches of text, not by where the text lies."""
        rows = self.segments[self.bounds[shard] : self.bounds[shard + 1]]
        fields = ("start", "stop", "first", "last")
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
    if parts is not None and not catalogue.cuts:
        return _plan_of_short(catalogue, kept, parts, times)
    rows: dict[int, list[tuple[Any, ...]]] = {0: [], 1: [], 2: []}
    owners: list[int] = []
    marks: list[Mark] = []
    known: dict[Mark, int] = {}

    def number(mark: Mark) -> int:
        if mark.byte == 0:
            return -1
        if mark not in known:
            known[mark] = len(marks)
            marks.append(mark)
        return known[mark]

    for document in np.flatnonzero(kept).tolist():
        file, offset, length, characters, size, _ = catalogue.rows[document].tolist()
        cuts = [(0, Mark()), *catalogue.cuts.get(document, [])]
        if parts is None:
            bounds = tail_bounds(characters, *shares)
            stretches = [(part, bounds[part], bounds[part + 1]) for part in range(3)]
        else:
            stretches = [(int(parts[document]), 0, characters)]
        for part, start, stop in stretches:
            for low, high, mark in _segments_of(cuts, start, stop):
                share = size * (high - low) // characters
                ends = (low == start, high == stop)
                rows[part].append((file, offset, length, number(mark), low, high, share, *ends))
                if part == 0:
                    owners.append(document)
    tables = {name: np.array(rows[part], dtype=SEGMENT) for part, name in enumerate(PARTS)}
    if times is not None:
        tables[PARTS[0]] = tables[PARTS[0]][_repeated(times[np.array(owners, dtype=np.int64)])]
    return {name: PlanOfPart(name, table, _bounds(table["bytes"]), marks) for name, table in tables.items()}


def _plan_of_short(
    catalogue: Catalogue, kept: NDArray[np.bool_], parts: NDArray[np.int8], times: NDArray[np.int32] | None
) -> dict[str, PlanOfPart]:
    """The same where every document is one segment: millions of rows without an object for each."""
    plan = {}
    for part, name in enumerate(PARTS):
        documents = np.flatnonzero(kept & (parts == part))
        if part == 0 and times is not None:
            documents = documents[_repeated(times[documents])]
        of_part = catalogue.rows[documents]
        table = np.zeros(len(of_part), dtype=SEGMENT)
        for field_name in ("file", "offset", "length", "bytes"):
            table[field_name] = of_part[field_name]
        table["mark"], table["stop"] = -1, of_part["characters"]
        table["first"] = table["last"] = True
        plan[name] = PlanOfPart(name, table, _bounds(table["bytes"]))
    return plan


def _repeated(times: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n] → which of n to take, one round after the other: in round r those that are taken more than r times."""
    rounds = [np.flatnonzero(times > done) for done in range(int(times.max(initial=0)))]
    return np.concatenate([*rounds, np.zeros(0, np.int64)]).astype(np.int64)


def _segments_of(cuts: list[tuple[int, Mark]], start: int, stop: int) -> Iterator[tuple[int, int, Mark]]:
    """Cut [start, stop) at `cuts`; each with the mark from which its text is reached."""
    for index, (low, mark) in enumerate(cuts):
        high = cuts[index + 1][0] if index + 1 < len(cuts) else stop
        clipped = (max(low, start), min(high, stop))
        if clipped[0] < clipped[1]:
            yield *clipped, mark


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
