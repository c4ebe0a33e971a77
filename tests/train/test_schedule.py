"""The course of the learning rate against its closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.config import TrainConfig
from tutti.train.schedule import learning_rate_factor

SCHEDULES = ["cosine", "linear", "wsd", "constant"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_straight_line_to_the_peak(schedule: str) -> None:
    factors = [learning_rate_factor(step, 1000, 40, schedule, 0.1) for step in range(1, 41)]
    assert factors == pytest.approx([step / 40 for step in range(1, 41)])


@pytest.mark.parametrize(
    ("schedule", "form"),
    [
        ("cosine", lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 100) / 900)) / 2),
        ("linear", lambda t: 1 - 0.9 * (t - 100) / 900),
        ("wsd", lambda t: 1.0 if t <= 800 else 1 - 0.9 * (t - 800) / 200),
        ("constant", lambda t: 1.0),
    ],
)
def test_after_the_warm_up(schedule: str, form) -> None:
    for step in (100, 101, 350, 550, 799, 800, 801, 900, 999, 1000):
        assert learning_rate_factor(step, 1000, 100, schedule, 0.1) == pytest.approx(form(step))


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 400),
    schedule=st.sampled_from(SCHEDULES),
    final=st.floats(0, 1),
)
def test_any_run_rises_to_at_most_the_peak_then_falls_to_the_final_share(
    steps: int, warmup: int, schedule: str, final: float
) -> None:
    factors = [learning_rate_factor(step, steps, warmup, schedule, final) for step in range(1, steps + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    top = min(max(warmup, 1), steps)
    assert factors[:top] == sorted(factors[:top])
    assert all(
        later <= earlier + 1e-12 for earlier, later in zip(factors[top - 1 :], factors[top:], strict=False)
    )
    if warmup < steps and schedule != "constant" and not (schedule == "wsd" and round(0.2 * steps) == 0):
        assert factors[-1] == pytest.approx(final)
    assert learning_rate_factor(steps + 5, steps, min(warmup, steps), schedule, final) <= 1


def test_a_rising_one_grows_by_the_same_factor_at_every_step() -> None:
    factors = [learning_rate_factor(step, 9, 4, "rising", 1e-4) for step in range(1, 10)]
    assert factors == pytest.approx([10 ** (-4 + n / 2) for n in range(9)])
    assert learning_rate_factor(20, 9, 0, "rising", 1e-4) == 1
    assert learning_rate_factor(1, 1, 0, "rising", 1e-4) == 1e-4
    with pytest.raises(ValueError, match="cannot be 0"):
        TrainConfig(schedule="rising", final_learning_rate=0.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="from 1"):
        learning_rate_factor(0, 10, 1, "cosine", 0.1)
    with pytest.raises(ValueError, match="no schedule 'cosin'"):
        learning_rate_factor(1, 10, 1, "cosin", 0.1)
