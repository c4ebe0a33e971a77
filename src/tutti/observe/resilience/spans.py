"""Sets of positions of the global order, as `[start, stop)` pairs: millions of samples are a handful of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tutti.core.ranges import merge

Span = tuple[int, int]


def total(spans: Iterable[Span]) -> int:
    """How many positions `spans` hold, one that is in several of them as often."""
    return sum(stop - start for start, stop in spans)


def repeated(spans: Sequence[Span]) -> int:
    """How many positions too many `spans` hold: one that is in three of them counts for two."""
    return total(spans) - total(merge(spans))


def minus(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The positions of `spans` that are in none of `others`."""
    left: list[Span] = []
    holes = merge(others)
    for start, stop in merge(spans):
        for low, high in holes:
            if high <= start:
                continue
            if low >= stop:
                break
            if low > start:
                left.append((start, low))
            start = max(start, high)
        if start < stop:
            left.append((start, stop))
    return left


def meet(spans: Iterable[Span], others: Sequence[Span]) -> bool:
    """Whether any position is in both."""
    return any(start < high and low < stop for start, stop in spans for low, high in others)
