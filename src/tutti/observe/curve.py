"""The loss curve as a picture: `loss.png`, 900 × 500 pixels."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from tutti.observe.history import History
from tutti.observe.tail import number

if TYPE_CHECKING:  # it takes a second, and most readers of runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VALIDATION, _RESTART, _INK, _GRID = "#3b6fb6", "#d1622b", "#9a9a9a", "#333333", "#e6e6e6"


def draw_curve(history: History, path: Path, title: str, train_loss: float | None = None) -> bool:
    """Draw training and validation loss over steps into `path`; False when there is nothing to draw yet.

    `train_loss` is the figure of the report; the legend says it.
    """
    figure = curve_of(history, title, train_loss)
    if figure is None:
        return False
    beside = path.with_name(f".{path.name}.tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)
    return True


def curve_of(history: History, title: str, train_loss: float | None = None) -> Figure | None:
    """The same as a figure; None when there is nothing to draw yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw = [(s.step, s.loss) for s in history.steps if math.isfinite(s.loss)]
    points = [
        (int(e.get("step") or 0), loss)
        for e in history.validations
        if (loss := number(e.get("loss"))) is not None and math.isfinite(loss)
    ]
    if not raw and not points:
        return None
    # The Figure class itself, not pyplot: no global state, no display, safe in any thread.
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if raw:
        steps, losses = [s for s, _ in raw], [x for _, x in raw]
        smooth = smoothed(losses)
        axes.plot(steps, losses, color=_TRAIN, alpha=0.22, linewidth=0.9)
        label = "training, smoothed" + (f": {train_loss:.3f}" if train_loss is not None else "")
        axes.plot(steps, smooth, color=_TRAIN, linewidth=2.0, label=label, solid_capstyle="round")
    if points:
        label = f"validation: {points[-1][1]:.3f}"
        axes.plot(
            [s for s, _ in points],
            [x for _, x in points],
            color=_VALIDATION,
            linewidth=1.2,
            marker="o",
            markersize=5.5,
            markeredgecolor="white",
            label=label,
        )
    for index, step in enumerate(sorted({step for step in history.continued_at if step > 0})):
        label = "went on from a checkpoint" if index == 0 else ""
        axes.axvline(step, color=_RESTART, linewidth=1.2, linestyle=(0, (4, 3)), label=label, zorder=0)
    scale_losses(axes, *_limits([x for _, x in raw], [x for _, x in points]))
    axes.set_xlim(left=0)
    style(figure, title)
    return figure


def smoothed(values: list[float]) -> list[float]:
    """Centred mean over up to a thirtieth of the curve; narrower at its steep beginning.

    Outliers count with the values beside them, not with their own, so that one spike makes no hill.
    """
    calm = [statistics.median(values[max(0, i - 2) : i + 3]) for i in range(len(values))]
    sums = [0.0, *itertools.accumulate(calm)]
    result = []
    for index in range(len(calm)):
        half = min(len(calm) // 60, index // 4)
        first, last = index - half, min(len(calm), index + half + 1)
        result.append((sums[last] - sums[first]) / (last - first))
    return result


def _limits(raw: list[float], points: list[float]) -> tuple[float, float]:
    """From a little below the lowest value to where the curve begins; single spikes may leave the picture."""
    values = sorted(raw + points)
    bottom, top = values[0], values[-1]
    if len(values) >= 50:
        top = max(values[int(0.985 * len(values))], *raw[: max(1, len(raw) // 50)], *points)
    if bottom > 0:
        return bottom / 1.04, top * 1.04
    margin = 0.05 * (top - bottom) or 1.0
    return bottom - margin, top + margin


def scale_losses(axes: Axes, bottom: float, top: float) -> None:
    """A logarithmic axis with plain numbers where the loss falls far: else its long tail is a flat line."""
    axes.set_ylim(bottom, top)
    if bottom <= 0 or top / bottom < 2.5:
        return
    axes.set_yscale("log")
    from matplotlib.ticker import FixedLocator, NullLocator

    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    ticks = [round(m * 10.0**d, 6) for d in decades for m in (1, 1.5, 2, 3, 5, 7)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= top]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def style(figure: Figure, title: str) -> None:
    """How pictures of losses look."""
    axes = figure.axes[0]
    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=12)
    axes.set_xlabel("step", color=_INK, fontsize=11)
    axes.set_ylabel("loss", color=_INK, fontsize=11)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5b5b5")
    axes.tick_params(colors=_INK, labelsize=10, length=0)
    axes.legend(frameon=False, fontsize=11, loc="upper right", labelcolor=_INK)
