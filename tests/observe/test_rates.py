"""What is found in losses whose turning points are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tutti.core import RunError
from tutti.observe.rates import draw_rates, judge_rates

RATES = np.geomspace(1e-6, 1.0, 201)


def course(steepest: float = 1e-3, rise: float = 0.1) -> NDArray[np.float64]:
    """From 4 to 2, steepest (a logistic curve's middle) at `steepest`, and up again beyond `rise`."""
    x = np.log10(RATES)
    fall = 4 - 2 / (1 + np.exp(-4 * (x - np.log10(steepest))))
    return fall + np.maximum(0.0, x - np.log10(rise)) * 3


def test_turning_points_of_a_known_curve() -> None:
    noise = np.random.default_rng(0).normal(scale=0.02, size=len(RATES))
    test = judge_rates(list(RATES), list(course() + noise))
    assert math.log10(test.steepest) == pytest.approx(-3, abs=0.2)
    assert test.diverges == pytest.approx(10 ** (-1 + 1 / 3), rel=0.15)  # 3 a decade, and half of 2 is lost
    assert test.suggestion == pytest.approx(math.sqrt(test.steepest * test.lowest), rel=0.05)
    assert test.reason.startswith("halfway from")


def test_a_rate_near_the_one_that_breaks_is_not_taken() -> None:
    test = judge_rates(list(RATES), list(course(steepest=2e-2, rise=0.05)))
    assert test.diverges is not None
    assert test.suggestion == pytest.approx(test.diverges / 10, rel=0.05)
    assert "comes apart" in test.reason


def test_a_loss_that_is_no_number_ends_the_curve() -> None:
    losses = course()
    losses[180:] = math.nan
    test = judge_rates(list(RATES), list(losses))
    assert len(test.rates) == 180 and test.diverges is not None and test.diverges <= RATES[179]


def test_nothing_found_is_said() -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=len(RATES))
    with pytest.raises(RunError, match="did not fall at any rate"):
        judge_rates(list(RATES), list(4 + noise))
    with pytest.raises(RunError, match="not finite after 3 steps") as refused:
        judge_rates(list(RATES), [4.0, 4.0, 4.0, *[math.inf] * 198])
    assert "--from" in refused.value.hint


def test_the_picture_is_one_and_a_place_that_is_none_is_said(tmp_path: Path) -> None:
    test = judge_rates(list(RATES), list(course()))
    draw_rates(test, tmp_path / "a.png", "a", 1e-3)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunError, match="cannot be written"):
        draw_rates(test, tmp_path / "nowhere" / "a.png", "a", 1e-3)
