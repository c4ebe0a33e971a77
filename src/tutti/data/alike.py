"""Documents that are left out because of other documents: near duplicates, and what is to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutti.config.clean import CleanConfig
from tutti.config.data import DataConfig
from tutti.config.fields import bytes_of
from tutti.data.cleaning.cleaner import Cleaner, changes_of, shortened
from tutti.data.contamination import Search, SearchJob, make_index
from tutti.data.listing import list_sources
from tutti.data.manifest import Example, StepReport
from tutti.data.near.groups import SignedUnit, group
from tutti.data.processes import share_out
from tutti.data.reading import TextSettings
from tutti.data.scan import Catalogue
from tutti.data.settings import BYTES_WORTH_PROCESSES
from tutti.data.sources.document import Document, Stretch
from tutti.data.sources.documents import documents

_EXAMPLES = 3
_Kept = NDArray[np.bool_]


def near_duplicates(
    clean: CleanConfig, catalogue: Catalogue, kept: _Kept, first_held_out: int
) -> tuple[_Kept, StepReport]:
    """[documents] → those of `kept` that are near duplicates of another one that stays, and what was done.

    Of each group stays the first of those that are validation already (from row `first_held_out` on), else the first.
    """
    units = [SignedUnit(one.keys, one.signatures, one.record.documents) for one in catalogue.units]
    labels = group(units, kept, float(clean.near_duplicates), bytes_of(clean.index_memory))
    rank = np.arange(len(labels))
    rank[first_held_out:] -= len(rank)
    order = np.lexsort((rank, labels))
    begins = np.concatenate([[True], labels[order][1:] != labels[order][:-1]]) if len(order) else order > 0
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    stays = np.empty(len(labels), np.int64)
    stays[order] = first
    doubles = kept & (stays != np.arange(len(labels)))
    others = ((row, int(stays[row])) for row in np.flatnonzero(doubles).tolist())
    examples = (_beside(catalogue, row, catalogue.place(other)) for row, other in others)
    return doubles, _report("near duplicates", catalogue, kept, doubles, examples)


def duplicates(catalogue: Catalogue, usable: _Kept, doubles: _Kept) -> StepReport:
    """What was left out because it is equal to an earlier document."""
    examples = (_beside(catalogue, row, "an earlier one") for row in np.flatnonzero(doubles).tolist())
    return _report("duplicates", catalogue, usable, doubles, examples)


def contaminated(
    config: DataConfig,
    catalogue: Catalogue,
    trained: _Kept,
    judged: _Kept,
    settings: TextSettings,
    directory: Path,
    workers: int,
    say: Callable[[str], None],
) -> tuple[_Kept, StepReport]:
    """[documents] → those of `trained` that hold much of a document of `judged` or of `clean.against`, which is changed
    as the others were.

    The index lies in `directory` while it is needed.
    """
    clean = config.clean.settled()
    length = int(clean.decontaminate)
    cleaner = Cleaner(changes_of(clean))
    against = (
        [Stretch(file) for file in list_sources(config, config.clean.against)] if config.clean.against else []
    )
    rows = np.flatnonzero(judged).tolist()
    names: list[str] = []

    def texts() -> Iterator[str]:
        for row in rows:
            yield catalogue.text(row)
        for stretch in against:
            for found in documents(stretch, settings):
                if isinstance(found, Document):
                    names.append(place := stretch.place(found.number))
                    yield cleaner.clean(found.text, stretch.kind, place) or ""

    index = make_index(texts(), length)
    say(f"comparing with {len(index.sizes):,} documents that must not be learned")
    path = directory / "contamination.npz"
    index.save(path)
    searches = [
        Search(unit.text, of_unit, catalogue.rows["offset"][of_unit], catalogue.rows["length"][of_unit])
        for unit, first in catalogue.unit_starts()
        if len(of_unit := first + np.flatnonzero(trained[first : first + unit.record.documents]))
    ]
    found = np.full(len(trained), -1, np.int32)
    worth = int(catalogue.rows["bytes"][trained].sum()) >= BYTES_WORTH_PROCESSES
    processes = min(workers, len(searches)) if worth else 1
    for search, owners in share_out(SearchJob(path, length, index.every), searches, processes):
        found[search.rows] = owners
    dropped = found >= 0

    def name(owner: int) -> str:
        return catalogue.place(rows[owner]) if owner < len(rows) else names[owner - len(rows)]

    examples = (_beside(catalogue, row, name(int(found[row]))) for row in np.flatnonzero(dropped).tolist())
    return dropped, _report("decontaminate", catalogue, trained, dropped, examples)


def _beside(catalogue: Catalogue, row: int, other: str) -> Example:
    return Example(where=catalogue.place(row), text=f"like {other}: {shortened(catalogue.text(row))}")


def _report(
    step: str, catalogue: Catalogue, seen: _Kept, dropped: _Kept, examples: Iterable[Example]
) -> StepReport:
    shown = iter(examples)
    return StepReport(
        step=step,
        seen=int(seen.sum()),
        changed=0,
        dropped=int(dropped.sum()),
        bytes=int(catalogue.rows["bytes"][dropped].sum()),
        reasons={},
        examples=tuple(example for _, example in zip(range(_EXAMPLES), shown, strict=False)),
    )
