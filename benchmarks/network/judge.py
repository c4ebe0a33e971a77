"""What the measurements mean: gaps, times to a loss, utilisation, and whether the targets are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

from benchmarks.network.arms import BASELINE, Arm
from benchmarks.network.formula import bytes_a_step
from benchmarks.network.origin import Origin
from benchmarks.network.results import Result, Store

#: Loss by step, the first at step 0.
Curve = Sequence[tuple[int, float]]

#: (a) utilisation by rate; (b) loss gap by how many times fewer bytes; (c) share of the ceiling at a rate.
UTILISATION = {100.0: 0.95, 10.0: 0.90}
GAPS = ((30, 0.01), (400, 0.03))
CEILING_RATE, CEILING_SHARE = 100.0, 0.80
#: Beside the very loss that the baseline ends at, one that lossy arms reach as well.
NEAR = 0.01


@dataclass
class Row:
    """All that is known of one arm. `by_rate`: its step times; `curves`: by factor of the learning rate; `longer`: at
    the best of these, by how many times the steps it was given."""

    arm: Arm
    formula: float | None
    curves: dict[float, Result]
    by_rate: dict[float, Result]
    missing_factors: list[float]
    longer: dict[float, Result] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def factor(self) -> float | None:
        """The learning rate, among those tried, that ends lowest."""
        return min(self.curves, key=lambda f: self.curves[f]["curve"][-1][1]) if self.curves else None

    @property
    def curve(self) -> Curve | None:
        """At the best learning rate."""
        return None if self.factor is None else self.curves[self.factor]["curve"]

    @property
    def loss(self) -> float | None:
        """At the end."""
        return None if self.curve is None else self.curve[-1][1]

    @property
    def sent(self) -> float | None:
        """Bytes a step and replica: by the formula, else as the kernel counted them."""
        return self.linked if self.formula is None else self.formula

    @property
    def linked(self) -> float | None:
        """Bytes a step and replica that left by the link, whatever they were, at the first rate measured."""
        return next((found["sent"] for found in self.by_rate.values()), None)


@dataclass(frozen=True)
class Verdict:
    """One target: what it says, by whom it is met or nearly so, and how far off that is."""

    target: str
    met: bool | None
    found: str


def rows_of(origin: Origin, store: Store, arms: Sequence[Arm], failures: dict[str, list[str]]) -> list[Row]:
    """What the store has."""
    setting = origin.setting
    rows = []
    for arm in arms:
        curves = {f: r for f in setting.learning_rate_factors if (r := store.get("convergence", arm, f))}
        by_rate = {rate: r for rate in setting.rates if (r := store.get("step_time", arm, rate))}
        missing = [f for f in setting.learning_rate_factors if f not in curves]
        formula = bytes_a_step(arm, origin.shapes, setting.replicas)
        row = Row(arm, formula, curves, by_rate, missing, failures=failures.get(arm.name, []))
        if row.factor is not None:
            row.longer = {n: r for n in setting.longer if (r := store.get("longer", arm, row.factor, n))}
        rows.append(row)
    return rows


def baseline(rows: Sequence[Row]) -> Row | None:
    """The row that others are compared with, if it was measured."""
    return next((row for row in rows if row.arm.name == BASELINE), None)


def steps_to(curve: Curve, loss: float) -> float | None:
    """Steps until `curve` is at `loss` for the first time, linear between validations; None: never."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss:
            return before + (after - before) * (
                min(1.0, (high - loss) / (high - low)) if high > loss else 0.0
            )
    return None


def ends_just_above(row: Row, base: Row) -> bool:
    """Whether a few steps more may bring `row` where `base` ended, and none that it was given has."""
    if row.loss is None or base.loss is None:
        return False
    ends = [row.loss, *(result["curve"][-1][1] for result in row.longer.values())]
    return min(ends) > base.loss >= row.loss / (1 + NEAR)


def seconds_to(row: Row, rate: float, loss: float) -> float | None:
    """Wall time until `row` is at `loss` with its step times at `rate`, with as many steps as suit it best."""
    if row.curve is None or rate not in row.by_rate:
        return None
    curves = [row.curve, *(result["curve"] for result in row.longer.values())]
    steps = min((s for curve in curves if (s := steps_to(curve, loss)) is not None), default=None)
    return None if steps is None else steps * row.by_rate[rate]["step_seconds"]


def ceiling(origin: Origin, rows: Sequence[Row], rate: float) -> float | None:
    """1 + T_comm ÷ T_compute: how much faster than the baseline, none of whose exchange is hidden, anything can be."""
    base = baseline(rows)
    if base is None or base.formula is None or not rate:
        return None
    return 1 + base.formula * 8 / (rate * 1e6) / origin.setting.pace_seconds


def utilisation(origin: Origin, found: Result) -> float:
    """The pace ÷ the time of a step."""
    return float(origin.setting.pace_seconds / found["step_seconds"])


def parameters(origin: Origin) -> int:
    """Of the model."""
    return sum(prod(shape) for shape in origin.shapes)


def verdicts(origin: Origin, rows: Sequence[Row]) -> list[Verdict]:
    """The targets; only Tutti's own arms count."""
    ours = [row for row in rows if row.arm.peer is None]
    found = [_utilised(origin, ours, rate, least) for rate, least in UTILISATION.items()]
    found += [_gap(ours, baseline(rows), fewer, most) for fewer, most in GAPS]
    found.append(_sped_up(origin, ours, rows))
    return found


def _utilised(origin: Origin, rows: Sequence[Row], rate: float, least: float) -> Verdict:
    target = f"(a) ≥ {least:.0%} utilisation at {rate:g} Mbit/s"
    shares = {row.arm.name: utilisation(origin, row.by_rate[rate]) for row in rows if rate in row.by_rate}
    if not shares:
        return Verdict(target, None, "not measured")
    best = max(shares, key=lambda name: shares[name])
    return Verdict(
        target,
        shares[best] >= least,
        f"{shares[best]:.1%} by {best} ({(shares[best] - least) * 100:+.1f} points)",
    )


def _gap(rows: Sequence[Row], base: Row | None, fewer: float, most: float) -> Verdict:
    target = f"(b) ≤ {most:.0%} loss gap at ≥ {fewer}× fewer bytes than {BASELINE}"
    if base is None or base.loss is None or base.sent is None:
        return Verdict(target, None, "not measured")
    gaps = {
        row.arm.name: row.loss / base.loss - 1
        for row in rows
        if row.loss is not None and row.sent and base.sent / row.sent >= fewer
    }
    if not gaps:
        return Verdict(target, None, "not measured")
    best = min(gaps, key=lambda name: gaps[name])
    return Verdict(
        target, gaps[best] <= most, f"{gaps[best]:+.2%} by {best} ({(gaps[best] - most) * 100:+.2f} points)"
    )


def _sped_up(origin: Origin, ours: Sequence[Row], rows: Sequence[Row]) -> Verdict:
    rate = CEILING_RATE
    target = f"(c) ≥ {CEILING_SHARE:.0%} of the ceiling in time to {BASELINE}'s loss at {rate:g} Mbit/s"
    base, most = baseline(rows), ceiling(origin, rows, rate)
    if base is None or base.loss is None or most is None:
        return Verdict(target, None, "not measured")
    texts, met = list[str](), list[bool]()
    for loss, what in ((base.loss, "to its last loss"), (base.loss * (1 + NEAR), f"to {NEAR:.0%} above it")):
        of_base = seconds_to(base, rate, loss)
        if of_base is None:
            return Verdict(target, None, "not measured")
        others = {row.arm.name: seconds_to(row, rate, loss) for row in ours if row is not base}
        ups = {name: of_base / seconds for name, seconds in others.items() if seconds}
        if not ups:
            met.append(False)
            texts.append(f"{what}: no other arm came there")
            continue
        best = max(ups, key=lambda name: ups[name])
        share = ups[best] / most
        met.append(share >= CEILING_SHARE)
        off = (share - CEILING_SHARE) * 100
        texts.append(f"{what} {ups[best]:.2f}× by {best}, {share:.0%} of {most:.2f}× ({off:+.1f} points)")
    hidden = base.by_rate[rate]["step_seconds"] / origin.setting.pace_seconds
    texts.append(f"{BASELINE} hides some of its exchange, so equal steps could gain {hidden:.2f}× at most")
    return Verdict(target, met[0], "; ".join(texts))


def as_json(origin: Origin, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for the result file."""
    return [
        {
            "arm": row.arm.name,
            "sync": row.arm.sync,
            "peer": row.arm.peer,
            "formula_bytes": row.formula,
            "best_factor": row.factor,
            "final_loss": row.loss,
            "convergence": {f"{factor:g}": result for factor, result in row.curves.items()},
            "missing_factors": row.missing_factors,
            "longer": {f"{longer:g}": result for longer, result in row.longer.items()},
            "step_times": {f"{rate:g}": result for rate, result in row.by_rate.items()},
            "failures": row.failures,
        }
        for row in rows
    ]
