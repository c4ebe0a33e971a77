"""One thing that a step spends its time on: what it costs, how that is known, and what to change."""

from __future__ import annotations

from dataclasses import dataclass

from tutti.observe import words


@dataclass(frozen=True)
class Cause:
    """`seconds` of a step that it costs, and their `share` of it; `evidence` in sentences.

    change: a setting as it would be typed (`train.precision=bf16`), or what to do. expected_seconds: a step with it, of
    as many samples as now (None: nothing measured says); why: how that follows from the evidence.
    """

    kind: str
    seconds: float
    share: float
    evidence: tuple[str, ...]
    change: str
    expected_seconds: float | None
    why: str


def spent(seconds: float) -> str:
    """Seconds of a step in words, however few: `0.4 ms`, `34 ms`, `1.2 s`."""
    return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else words.seconds(seconds)


def flops(rate: float) -> str:
    """`66.2 GFLOP/s`."""
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"
