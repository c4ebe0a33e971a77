"""Half-open intervals `(start, stop)`, of positions of the global order or of time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def merge(ranges: Iterable[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    """What `ranges` cover, as sorted, disjoint, non-adjacent ones; empty ones are left out."""
    merged: list[tuple[Number, Number]] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
