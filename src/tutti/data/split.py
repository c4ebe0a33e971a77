"""Which document, or which end of a document, is kept for validation and test.

`document`: by the hash of the content alone, so a document is never in two parts, equal documents are in the
same part, and neither the order nor the names of files matter. With u = (first 64 bits of the hash) / 2^64 a
document belongs to validation if u < v, to test if u < v + t, else to train (v, t: the shares). Few documents
may leave a part far too small; then it takes those that come next by hash until it has half its share.

`tail`: of each document the last ⌊…⌋ characters: with n characters, train is [0, ⌊n·(1−v−t)⌋), validation
goes on to ⌊n·(1−t)⌋, and test is the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.config.data import DataConfig

#: Below so many documents `auto` takes the end of each instead of whole documents.
FEWEST_DOCUMENTS = 20


def choose_split(config: DataConfig, documents: int) -> tuple[str, str | None]:
    """The way to split, and the words for it where it was chosen here."""
    if config.split != "auto":
        return config.split, None
    if documents < FEWEST_DOCUMENTS:
        return "tail", (
            f"data.split = tail: the end of each document, for there "
            f"{'is' if documents == 1 else 'are'} only {documents} (fewer than {FEWEST_DOCUMENTS})"
        )
    return (
        "document",
        f"data.split = document: {documents} documents; whole ones are kept, by the hash of their content",
    )


def assign(rows: NDArray[Any], validation: float, test: float) -> NDArray[np.int8]:
    """[n] rows → [n]: 0 train, 1 validation, 2 test."""
    contents, content = np.unique(rows["hash"], axis=0, return_inverse=True)  # sorted by hash
    sizes = np.bincount(content, weights=rows["bytes"])
    place = contents[:, 0].astype(np.float64) / 2.0**64
    parts = np.zeros(len(contents), dtype=np.int8)
    parts[place < validation + test] = 2
    parts[place < validation] = 1
    for part, share in ((1, validation), (2, test)):
        wanted = share * float(sizes.sum()) / 2
        has = float(sizes[parts == part].sum())
        left = np.flatnonzero(parts == 0)
        for number in left[:-1]:  # the last one stays, to train on
            if has >= wanted:
                break
            parts[number] = part
            has += float(sizes[number])
    return parts[content]


def tail_bounds(characters: int, validation: float, test: float) -> tuple[int, int, int, int]:
    """Bounds of train, validation and test in a document: part p is [bounds[p], bounds[p + 1])."""
    first = int(characters * (1 - validation - test))
    second = int(characters * (1 - test)) if test else characters
    return 0, first, second, characters
