"""Which rung of the ladder a run takes: the least lossy that is nearly as good as the best.

Good is little time to the same loss: seconds of a step × the rung's price in steps. Within 5 % of each other, the noise
of the measurement, the less lossy one is taken. Because sums in bf16 at every step have price 1, nothing is chosen that
is predicted to be slower than they are, but for those 5 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tutti.config.agreement import SyncConfig
from tutti.sync.cost import Link, Measured, compute_seconds, step_seconds, travels_as
from tutti.sync.ladder import Rung

#: What a prediction may be off without meaning anything.
NOISE = 0.05


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why in one sentence."""

    rung: Rung
    reason: str


def choose(rungs: Iterable[Rung], ranks: Sequence[Measured]) -> Choice:
    """The rung for a run on the ranks that measured; `rungs` go from the least to the most lossy."""
    ladder = list(rungs)
    seconds = {rung.name: step_seconds(rung.sync, ranks) for rung in ladder}
    best = min(seconds[rung.name] * rung.price for rung in ladder)
    chosen = next(rung for rung in ladder if seconds[rung.name] * rung.price <= (1 + NOISE) * best)
    link = min((_link(chosen.sync, rank) for rank in ranks), key=lambda link: link.bytes_per_second)
    computing = compute_seconds(chosen.sync, ranks)
    listed = ", ".join(f"{name} {_figure(value)}" for name, value in seconds.items())
    return Choice(
        chosen,
        f"sync = {chosen.name}: one step computes in {_figure(computing)} s; measured "
        f"{_figure(link.bytes_per_second * 8 / 1e6)} Mbit/s and {_figure(link.latency_seconds * 1e3)} ms between "
        f"replicas; predicted seconds of a step: {listed}; the least lossy of those that get to a loss soonest",
    )


def _link(sync: SyncConfig, rank: Measured) -> Link:
    return rank.links[travels_as(sync.codec)]


def _figure(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
