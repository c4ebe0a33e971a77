"""Runs that differ in nothing but their seeds are one arm: what its figures come to, and what is more than chance.

Two arms are told apart by Welch's t-test (1947), which does not take their spreads to be equal.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Settings that say which random numbers are drawn, and nothing else.
_SEEDS = ("train.seed", "model.seed")
#: Of all tests, so many find a difference where there is none.
_CHANCE = 0.05


@dataclass(frozen=True)
class Arm:
    """`runs`: their places among those that are compared."""

    name: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """Of one figure, `arm` beside `beside`. `means`, `spreads` (standard deviations; None: of one run), `counts`: of
    the two, `beside` first. `interval`: in which the difference of the means lies with a chance of 95 %; `p`: the
    chance of such a difference, or a larger one, where there is none (both None: it cannot be told)."""

    figure: str
    arm: str
    beside: str
    means: tuple[float, float]
    spreads: tuple[float | None, float | None]
    counts: tuple[int, int]
    difference: float
    interval: tuple[float, float] | None
    p: float | None

    @property
    def sentence(self) -> str:
        """In words."""
        found = f"{self.figure}: {self.arm} {self.difference:+.4g} beside {self.beside}"
        if self.interval is None or self.p is None:
            few = "one run of an arm" if min(self.counts) == 1 else "all runs of an arm are alike"
            return f"{found}; whether that is chance cannot be told ({few}; run it with other train.seed)"
        low, high = self.interval
        verdict = "more than chance" if self.p < _CHANCE else "may be chance"
        return f"{found} (95 %: {low:+.4g} to {high:+.4g}; p = {self.p:.2g}): {verdict}"

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"sentence": self.sentence}


def arms_of(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """The arms of runs with `configs`, settings by dotted keys, in the order in which they come."""
    found: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        kind = repr(sorted((key, repr(value)) for key, value in config.items() if key not in _SEEDS))
        found.setdefault(kind, []).append(number)
    several = [[names[number] for number in runs] for runs in found.values()]
    called = [_name(some) for some in several]
    return [
        Arm(name if called.count(name) == 1 else ", ".join(some), tuple(runs))
        for name, some, runs in zip(called, several, found.values(), strict=True)
    ]


def differences(arms: Sequence[Arm], figures: Mapping[str, Sequence[float | None]]) -> list[Difference]:
    """Every arm beside the first one, in each of `figures` (a value for each run) that all runs of both have."""
    found = []
    for figure, values in figures.items():
        first, *others = ([values[number] for number in arm.runs] for arm in arms)
        for arm, own in zip(arms[1:], others, strict=True):
            known, theirs = [v for v in first if v is not None], [v for v in own if v is not None]
            if len(known) == len(first) and len(theirs) == len(own):
                found.append(_difference(figure, arm, arms[0], theirs, known))
    return found


def _difference(
    figure: str, arm: Arm, beside: Arm, own: Sequence[float], other: Sequence[float]
) -> Difference:
    spreads = (_spread(other), _spread(own))
    interval, p = None, None
    if all(spread is not None for spread in spreads) and any(spreads):
        from scipy import stats  # here, because most readers of runs compare none, and it takes a second

        test = stats.ttest_ind(own, other, equal_var=False)
        bounds = test.confidence_interval(0.95)
        p = float(test.pvalue)
        interval = (float(bounds.low), float(bounds.high))
    means = (statistics.fmean(other), statistics.fmean(own))
    return Difference(
        figure,
        arm.name,
        beside.name,
        means,
        spreads,
        (len(other), len(own)),
        means[1] - means[0],
        interval if p is not None and math.isfinite(p) else None,
        p if p is not None and math.isfinite(p) else None,
    )


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = (
        letters[0]
        for letters in itertools.takewhile(lambda some: len(set(some)) == 1, zip(*names, strict=False))
    )
    common = "".join(alike).rstrip("-_. ")
    return f"{common or names[0]} ({len(names)} seeds)"
