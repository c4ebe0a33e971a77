"""Who makes the others wait: how long each rank works on a step until it waits for others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from tutti.observe.history import History


def over_the_others(seconds: Mapping[int, float]) -> dict[int, float]:
    """By rank, its seconds over the median of the others'; empty where there are no others."""
    found = {}
    for rank, own in seconds.items():
        others = [other for of, other in seconds.items() if of != rank]
        if others and (middle := statistics.median(others)) > 0:
            found[rank] = own / middle
    return found


def ranks_of(history: History, signs: dict[int, dict[str, Any]], last: int = 50) -> list[dict[str, Any]]:
    """Of each rank the mean seconds of its own work over the `last` steps that it made, and these over the median of
    the others'; where it is now, by its sign of life."""
    own: dict[int, list[float]] = {}
    for step in sorted(history.alone, reverse=True)[: 4 * last]:
        for rank, seconds in history.alone[step].items():
            if len(own.setdefault(rank, [])) < last:
                own[rank].append(seconds)
    means = {rank: sum(found) / len(found) for rank, found in own.items()}
    ratios = over_the_others(means)
    return [
        {
            "rank": rank,
            "seconds": means.get(rank),
            "of_others": ratios.get(rank),
            "step": sign.get("step"),
            "phase": sign.get("phase"),
        }
        for rank in sorted({*means, *signs})
        if (sign := signs.get(rank, {})) is not None
    ]
