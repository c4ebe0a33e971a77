"""Two pictures of the result: what fewer bytes cost in loss (Pareto), and time to the baseline's loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.network.judge import CEILING_RATE, NEAR, Row, baseline, parameters, seconds_to
from benchmarks.network.origin import Origin

_OURS, _THEIRS = "tab:blue", "tab:orange"
#: Where a point's number stands beside it, in points.
_SIDES = ((0, 6), (8, -3), (0, -13), (-8, -3))


def draw(origin: Origin, rows: Sequence[Row], path: Path) -> None:
    """Write `path` (PNG); what was not measured is left out."""
    figure = Figure(figsize=(15, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _pareto(left, origin, rows)
    _times(right, rows)
    figure.savefig(path, dpi=110)


def _pareto(axes: Axes, origin: Origin, rows: Sequence[Row]) -> None:
    base = baseline(rows)
    axes.set(
        xlabel="bytes sent per parameter, step and replica",
        ylabel="final loss against the baseline's, %",
        xscale="log",
        title="Loss against bytes, at equal tokens",
    )
    if base is None or base.loss is None:
        return
    points, names = list[tuple[float, float]](), list[str]()
    for row in rows:
        if row.loss is None or not row.sent:
            continue
        x, y = row.sent / parameters(origin), (row.loss / base.loss - 1) * 100
        points.append((x, y))
        names.append(f"{len(points)}  {row.arm.name}")
        axes.scatter(x, y, color=_OURS if row.arm.peer is None else _THEIRS)
        # In turns to all sides: arms of like loss lie side by side.
        side = _SIDES[len(points) % len(_SIDES)]
        axes.annotate(
            str(len(points)), (x, y), textcoords="offset points", xytext=side, fontsize=8, ha="center"
        )
    front = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    axes.plot(*zip(*sorted(front), strict=True), color="gray", linewidth=0.8)
    axes.grid(alpha=0.3)
    # Beside the points, not among them.
    axes.annotate(
        "\n".join(names), (1.01, 0.98), xycoords="axes fraction", va="top", fontsize=7, annotation_clip=False
    )


def _times(axes: Axes, rows: Sequence[Row]) -> None:
    base = baseline(rows)
    axes.set(
        title=f"Time at {CEILING_RATE:g} Mbit/s to within {NEAR:.0%} of the baseline's last loss",
        xlabel="seconds",
    )
    if base is None or base.loss is None:
        return
    times = [(row, seconds_to(row, CEILING_RATE, base.loss * (1 + NEAR))) for row in rows]
    reached = sorted(((s, row) for row, s in times if s is not None), key=lambda pair: -pair[0])
    axes.barh(
        [row.arm.name for _, row in reached],
        [seconds for seconds, _ in reached],
        color=[_OURS if row.arm.peer is None else _THEIRS for _, row in reached],
    )
    axes.tick_params(axis="y", labelsize=7)
