"""The gradient noise scale: from which batch on more samples a step teach little more.

With the squared norms of the gradients of b and of B > b samples of one step (McCandlish et al. 2018, arXiv 1812.06162,
appendix A):

    G² = (B |g_B|² − b |g_b|²) ÷ (B − b)            unbiased, of the squared norm of the true gradient
    S  = (|g_b|² − |g_B|²) ÷ (1 ÷ b − 1 ÷ B)        unbiased, of the trace of the covariance of one sample's
    B_simple = mean S ÷ mean G²                     each smoothed by itself: a ratio of means, not a mean of ratios

With a batch of B, reaching a loss takes 1 + B ÷ B_simple times the fewest samples, and 1 + B_simple ÷ B times the
fewest steps (ibid., section 2), as far as the learning rate fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tutti.observe.history import Step

#: Of the two moving means: about the last 20 looks count. With fewer than `_LEAST` nothing is said.
_KEPT, _LEAST = 0.95, 5
#: Points of the course that are told.
_POINTS = 10


@dataclass(frozen=True)
class GradientNoise:
    """samples: B_simple at the end of the run, None where the gradient is lost in noise. batch: of a step. measured:
    how many looks there were. course: (step, B_simple) over the run."""

    samples: float | None
    batch: float
    measured: int
    course: list[tuple[int, float | None]]


def gradient_noise(steps: Iterable[Step]) -> GradientNoise | None:
    """Of the surviving steps of a run; None: there were too few looks."""
    trace = square = batch = 0.0  # both means begin at nothing, which cancels out in their ratio
    course: list[tuple[int, float | None]] = []
    for step in steps:
        for part, small, whole, batch in step.looks:
            square_now = (batch * whole**2 - small * part**2) / (batch - small)
            trace_now = (part**2 - whole**2) / (1 / small - 1 / batch)
            trace += (1 - _KEPT) * (trace_now - trace)
            square += (1 - _KEPT) * (square_now - square)
            scale = max(trace, 0.0) / square if square > 0 else None
            course.append((step.step, scale))
    if len(course) < _LEAST:
        return None
    apart = max(1, len(course) // _POINTS)
    told = course[_LEAST - 1 :: apart]
    return GradientNoise(course[-1][1], batch, len(course), [*told[:-1], course[-1]])


def noise_figures(steps: Iterable[Step]) -> dict[str, Any] | None:
    """The same as a report has it."""
    found = gradient_noise(steps)
    return asdict(found) if found is not None else None


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """What it means, for who chooses a batch: in two digits, which is more than a look at some steps is good for."""
    scale, batch = noise["samples"], float(noise["batch"])
    if scale is None:
        return f"too large to be told from steps of {batch:g} samples: a larger batch would lose next to no samples"
    if scale < 1:
        return f"below one sample: a batch of {batch:g} is far more than the gradient needs"
    more = f"about {scale:,.0f} samples: a batch of {batch:g} takes {_times(1 + batch / scale)} the fewest"
    other = 2 * batch if scale >= batch else batch / 2
    if other < 1:
        return more
    samples = (1 + other / scale) / (1 + batch / scale)
    steps = (1 + scale / other) / (1 + scale / batch)
    return f"{more}; one of {other:g} would take {_times(steps)} the steps and {_times(samples)} the samples"


def _times(factor: float) -> str:
    return f"{float(f'{factor:.2g}'):,g}×"
