"""Which rows a model computes together, with as little padding as may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

#: Of what is computed together, padding is at most this share, where it is computed like tokens.
_PADDING = 0.25


def alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that are computed together: such of like length that little of it is padding."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    some: list[int] = []
    tokens = 0
    for number in order:
        area = (len(some) + 1) * lengths[some[0]] if some else 0
        if some and area - tokens - lengths[number] > _PADDING * area:
            yield some
            some, tokens = [], 0
        some.append(number)
        tokens += lengths[number]
    if some:
        yield some
