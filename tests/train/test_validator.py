"""Which model is the best, and when it is enough: by validations that are counted, whoever made them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tutti.config import load_config
from tutti.core import ConfigError
from tutti.resolve import Facts, resolve
from tutti.train import validator as validator_module
from tutti.train.state import RunState
from tutti.train.validator import Validator


def one(
    monkeypatch: pytest.MonkeyPatch, losses: list[float], *, drifts: bool = False, patience: int | None = 2
) -> Any:
    """A validator that finds `losses` one after the other; its events; what stands on the disk."""
    told: list[dict[str, Any]] = []
    events = SimpleNamespace(write=lambda kind, **fields: told.append({"kind": kind} | fields))
    notes = SimpleNamespace(leads=True, events=events, memory=lambda: None)
    policy = SimpleNamespace(drifts=drifts, leads=True, sum_evaluation=lambda f: torch.tensor(losses.pop(0)))
    job = SimpleNamespace(validation_data=object(), main_metric=None, answer_width=0)
    found = lambda sums: SimpleNamespace(loss=float(sums), bits_per_byte=None, targets=1)  # noqa: E731
    monkeypatch.setattr(validator_module, "Evaluation", SimpleNamespace(of=found))
    live = SimpleNamespace(phase=lambda _: nullcontext())
    disk: dict[str, Any] = {"best": None}
    settings = SimpleNamespace(patience=patience, validate_every=10)
    parts: list[Any] = [job, None, policy, None, settings, notes, live, None, lambda: disk["best"]]
    return Validator(*parts), told, disk


def measured(validator: Any, state: RunState, step: int) -> bool:
    state.step = step
    return bool(validator.measure(state, lambda: None))


def test_patience_counts_validations_however_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    validator, told, _ = one(monkeypatch, [1.0, 0.9, 0.95, 0.92])
    state = RunState()
    assert [measured(validator, state, step) for step in (100, 200, 300)] == [True, True, False]
    assert not validator.enough  # one was no better, though a hundred steps lie between
    measured(validator, state, 400)
    assert validator.enough and (state.best_step, state.best_value) == (200, pytest.approx(0.9))
    assert [event["best_step"] for event in told if event["kind"] == "enough"] == [200]


def test_what_is_no_number_is_no_best(monkeypatch: pytest.MonkeyPatch) -> None:
    validator, _, _ = one(monkeypatch, [math.nan, math.inf, 3.0])
    state = RunState()
    assert [measured(validator, state, step) for step in (1, 2, 3)] == [False, False, True]
    assert state.best_step == 3


def test_who_leads_from_now_on_knows_the_best_of_who_led_before(monkeypatch: pytest.MonkeyPatch) -> None:
    validator, _, disk = one(monkeypatch, [0.8, 0.4], drifts=True)
    disk["best"] = (0.5, 200)
    state = RunState()
    assert not measured(validator, state, 300) and (state.best_value, state.best_step) == (0.5, 200)
    assert measured(validator, state, 400) and state.best_step == 400
    state.note_best(None, None)  # a donor that never led
    state.note_best(0.45, 500)
    assert (state.best_value, state.best_step) == (pytest.approx(0.4), 400)


def test_after_a_resume_the_best_is_one_that_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    validator, _, disk = one(monkeypatch, [])
    state = RunState(step=400, best_value=0.3, best_step=350)  # found when nobody would hand it on
    disk["best"] = (0.4, 200)
    validator.recall(state)
    assert (state.best_value, state.best_step) == (0.4, 200)
    disk["best"] = None
    validator.recall(state)
    assert state.best_value is None and state.best_step is None


def test_patience_without_anything_to_validate_on_is_refused() -> None:
    config = load_config(None, ["train.patience=3", "train.steps=10", "replicas=1", "train.precision=fp32"])
    with pytest.raises(ConfigError, match=r"train\.patience waits for a better validation"):
        resolve(config, Facts(1000, 8, 0))
