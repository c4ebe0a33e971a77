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
from tutti.sync import Totals
from tutti.train import validator as validator_module
from tutti.train.feed import Portion
from tutti.train.loop import Loop
from tutti.train.state import RunState
from tutti.train.step import Gradient
from tutti.train.validator import Validator

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("losses", [[0.9, 0.95, 0.97], [0.9] * 9], ids=["as the others", "behind them"])
def test_a_run_ends_alike_for_who_has_counted_fewer_validations(
    monkeypatch: pytest.MonkeyPatch, losses: list[float]
) -> None:
    """Step 40 sums up that another replica has had enough. This one leads, and was started again meanwhile, or not."""
    validator, told, _ = one(monkeypatch, [1.0, *losses])
    at_another = {step: Totals(1.0, 4, 4, step > 40, enough=step > 40).vector(CPU) for step in range(1, 101)}
    policy = SimpleNamespace(
        drifts=False, late=False, behind=False, leads=True, rounds=0, catch_up=lambda: None,
        start=lambda step, last: None, make_step=lambda step, work: (step, work(step)), consensus=nullcontext,
        settle=lambda: None, samples=lambda step: [], after_step=lambda step, last, totals: None,
        transport=SimpleNamespace(part=lambda: None), sum_evaluation=validator.policy.sum_evaluation,
    )  # fmt: skip
    loop: Any = object.__new__(Loop)

    def summed(batches: Any, tokens: int, key: int, stop: bool, *, enough: bool, apart: bool) -> Gradient:
        own = Totals(1.0, 4, 4, stop, enough).vector(CPU)
        return Gradient(1.0, 1.0, Totals.of(own + at_another[loop.state.step + 1]), usable=True)

    nothing = lambda *_, **__: None  # noqa: E731
    loop.state, loop.policy, loop.validator, loop.notes = RunState(), policy, validator, validator.notes
    loop.notes.step = loop.notes.meeting = nothing
    loop.notes.events.write, loop.events = validator.notes.events.write, validator.notes.events
    loop.live = SimpleNamespace(set=nothing, phase=lambda _: nullcontext())
    loop.world = SimpleNamespace(speaks=True, at=lambda _: 0, layout=SimpleNamespace(shard=1))
    loop.feed = SimpleNamespace(count=lambda *_: 0, load=lambda *_: Portion([], []))
    loop.optimizers = SimpleNamespace(set_learning_rate=nothing, step=nothing)
    loop.keeper = SimpleNamespace(saved_step=None, save=nothing, note_saves=nothing)
    loop.accumulator = SimpleNamespace(run=summed, tells_apart=False)
    loop.job = SimpleNamespace(allocation=None, tokens_per_sample=1, depends_on_batch=True)
    loop.cooperation = loop.average = loop.profiler = None
    loop.stop_requested = loop.others_ended = lambda: False
    settings: dict[str, Any] = {"steps": 100, "patience": 2, "validate_every": 10, "checkpoint_every": 1000}
    settings |= {"micro_batch": 1, "learning_rate": 1.0, "warmup": 0, "schedule": "constant"}
    settings |= {"final_learning_rate": 1.0, "compiled": False, "batches": SimpleNamespace(at=lambda _: 4)}
    loop.settings = validator.settings = SimpleNamespace(**settings)
    assert loop.run() == "finished"
    kinds = [event["kind"] for event in told]
    assert kinds.count("enough") == 1 and "interrupted" not in kinds and loop.state.step == 41


def test_patience_without_anything_to_validate_on_is_refused() -> None:
    config = load_config(None, ["train.patience=3", "train.steps=10", "replicas=1", "train.precision=fp32"])
    with pytest.raises(ConfigError, match=r"train\.patience waits for a better validation"):
        resolve(config, Facts(1000, 8, 0))
