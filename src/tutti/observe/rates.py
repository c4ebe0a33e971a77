"""What losses at ever larger learning rates say: where they fall fastest, where they come apart, and a picture of it.

The range test of L. Smith 2015 (arXiv 1506.01186): a step at each rate, so the loss at a rate is that of a model which
has just learned at all smaller ones. It finds the order of magnitude, not the last percent. Where the loss falls
fastest is what fastai calls steep, and too small for what comes after a warm-up; where it is lowest is too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tutti.core import RunError
from tutti.observe.curve import scale_losses, style

_RAW, _SMOOTH, _AUTO, _INK = "#3b6fb6", "#3b6fb6", "#9a9a9a", "#333333"
_FOUND, _APART = "#d1622b", "#b03030"
#: The loss is a mean over so many steps on each side, its slope is taken over so many, and it has come apart when it
#: has lost so much of what it had gained.
_MEAN_SHARE, _SLOPE_SHARE, _LOST = 1 / 40, 1 / 20, 0.5
#: The rate to take is so many times smaller than the one at which it comes apart.
_BELOW = 10
_LEAST = 20


@dataclass(frozen=True)
class RateTest:
    """Losses by rate, as they were and smoothed; rates: the one to take, where the loss falls fastest, where it is
    lowest, and from which on it has come apart (None: from none)."""

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    suggestion: float
    reason: str
    steepest: float
    lowest: float
    diverges: float | None


def judge_rates(rates: Sequence[float], losses: Sequence[float]) -> RateTest:
    """Of the `losses` of steps at ever larger `rates`; what follows a loss that is not finite does not count.

    Raises:
        RunError: the loss did not fall anywhere.
    """
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    broke = end < len(losses)
    rates, losses = list(rates[:end]), list(losses[:end])
    if len(losses) < _LEAST:
        raise RunError(
            f"the loss was not finite after {len(losses)} steps, at a rate of {rates[-1] if rates else 0:.1e}",
            "begin with a smaller rate: --from 1e-8",
        )
    smooth = _smoothed(losses, max(1, round(len(losses) * _MEAN_SHARE)))
    before = sum(losses[: len(losses) // 10]) / (len(losses) // 10)
    bottom = min(range(len(smooth)), key=smooth.__getitem__)
    apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(losses, smooth, strict=True)) / len(losses))
    gained = before - smooth[bottom]
    if gained <= max(apart, 1e-3 * abs(before)):
        raise RunError(
            f"the loss did not fall at any rate from {rates[0]:.1e} to {rates[-1]:.1e}: {before:.4g} before, "
            f"{smooth[bottom]:.4g} at best",
            "try larger rates (--to 100) or more steps; else look at the data and the loss",
        )
    back = (i for i in range(bottom, len(smooth)) if smooth[i] > smooth[bottom] + _LOST * gained)
    lost = next(back, len(smooth) - 1 if broke else None)
    slopes = _slopes([math.log(rate) for rate in rates], smooth, max(2, round(len(losses) * _SLOPE_SHARE)))
    steepest = min(range(bottom + 1), key=slopes.__getitem__)
    diverges = rates[lost] if lost is not None else None
    suggestion = math.sqrt(rates[steepest] * rates[bottom])
    reason = f"halfway from {rates[steepest]:.1e}, where the loss falls fastest, to {rates[bottom]:.1e}, its lowest"
    if diverges is not None and suggestion > diverges / _BELOW:
        suggestion, reason = diverges / _BELOW, f"a tenth of {diverges:.1e}, where the loss comes apart"
    return RateTest(
        rates, losses, smooth, float(f"{suggestion:.1e}"), reason, rates[steepest], rates[bottom], diverges
    )


def _smoothed(values: Sequence[float], half: int) -> list[float]:
    """Centred means over `half` values on each side, fewer at the ends."""
    means = []
    for index in range(len(values)):
        width = min(half, index, len(values) - 1 - index)
        some = values[index - width : index + width + 1]
        means.append(sum(some) / len(some))
    return means


def _slopes(x: Sequence[float], y: Sequence[float], half: int) -> list[float]:
    """Of straight lines through `half` points on each side, by least squares."""
    slopes = []
    for index in range(len(x)):
        place = slice(max(0, index - half), index + half + 1)
        xs, ys = x[place], y[place]
        middle = sum(xs) / len(xs)
        spread = sum((a - middle) ** 2 for a in xs)
        slopes.append(sum((a - middle) * b for a, b in zip(xs, ys, strict=True)) / spread)
    return slopes


def draw_rates(test: RateTest, path: Path, title: str, auto: float) -> None:
    """Losses over rates as a PNG of 900 × 500 pixels, with what was found, and what `auto` would take.

    Raises:
        RunError: the file cannot be written.
    """
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.plot(test.rates, test.losses, color=_RAW, alpha=0.22, linewidth=0.9)
    axes.plot(test.rates, test.smooth, color=_SMOOTH, linewidth=2.0, label="loss, smoothed")
    marks = [(test.suggestion, _FOUND, "-", "suggestion"), (auto, _AUTO, (0, (4, 3)), "auto")]
    if test.diverges is not None:
        marks.append((test.diverges, _APART, (0, (1, 2)), "comes apart"))
    for rate, color, line, name in marks:
        axes.axvline(rate, color=color, linewidth=1.4, linestyle=line, label=f"{name}: {rate:.1e}")
    bottom, before = min(test.smooth), max(test.smooth[: max(1, len(test.smooth) // 10)])
    margin = 0.15 * (before - bottom)
    scale_losses(axes, bottom - margin, before + 3 * margin)
    style(figure, title)
    axes.set_xlabel("learning rate", color=_INK, fontsize=11)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.legend(frameon=False, fontsize=11, loc="lower left", labelcolor=_INK)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}", "give another file with --png"
        ) from None
