"""Arithmetic below fp32, and what happens when torch.compile cannot."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutti
from runs import SlowNet, regression
from toys import Numbers, make_objective
from tutti.core import read_events
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.parallel import Arithmetic, Split, World, apply_layout
from tutti.sync import AllReduce, Ledger, Place, StaticTransport
from tutti.train.feed import Feed
from tutti.train.precision import LossScale, compute_context
from tutti.train.rehearsal import Rehearsal
from tutti.train.step import Accumulator


def accumulator(precision: str, scale: LossScale, **options: Any) -> tuple[nn.Module, Accumulator]:
    objective = make_objective(**options)
    policy = AllReduce(StaticTransport(None), Place(0, 1), Ledger(), 16, bucket_bytes=100, everyone=None)
    cpu = torch.device("cpu")
    return objective, Accumulator(
        Split(objective, World.alone()), policy, nominal_targets=16, clip=None,
        context=compute_context(precision, cpu, sharded=False),
        loss_scale=scale, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_gradients_below_fp32_are_near_and_kept_in_fp32(precision: str, tolerance: float) -> None:
    batch = Numbers().load(0, list(range(16)))
    _, exact = accumulator("fp32", LossScale("fp32"))
    objective, low = accumulator(precision, LossScale(precision))
    expected, found = exact.run([batch], 0, 0, False), low.run([batch], 0, 0, False)
    assert found.usable
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    assert found.norm == pytest.approx(expected.norm, rel=tolerance)
    assert found.norm != expected.norm, "the low precision was really used"
    assert all(p.grad.dtype == torch.float32 for p in objective.parameters() if p.grad is not None)


def test_an_fp16_overflow_is_skipped_and_the_scale_finds_its_place() -> None:
    batch = dict(Numbers().load(0, list(range(16))))
    batch["y"] = batch["y"] * 3e4  # gradients near fp16's largest number, scaled by 2^16: infinite
    scale = LossScale("fp16")
    _, low = accumulator("fp16", scale)
    outcomes = [low.run([batch], 0, 0, False) for _ in range(20)]
    usable = [outcome.usable for outcome in outcomes]
    assert not usable[0] and usable[-1]
    assert usable == sorted(usable), "once the scale fits, it stays"
    assert scale.value == 2.0 ** (16 - usable.count(False))
    assert math.isfinite(outcomes[-1].norm)


def test_loss_scale_grows_again_and_other_precisions_have_none() -> None:
    scale = LossScale("fp16")
    assert not scale.accepts(math.nan)
    assert all(scale.accepts(1.0) for _ in range(2000))
    assert scale.value == 2.0**16
    assert LossScale("bf16").value == 1.0 and LossScale("bf16").accepts(math.nan)


def test_a_bf16_run_learns_as_fp32_does(tmp_path: Path) -> None:
    reports = {
        precision: tutti.fit(
            SlowNet(0.0), nn.MSELoss(), regression(200), validation=regression(60), workers=1, steps=60, batch=20,
            name=precision, runs=str(tmp_path), console=False, train__precision=precision, train__learning_rate=0.02,
        ).report
        for precision in ("fp32", "bf16")
    }  # fmt: skip
    assert reports["bf16"]["validation_loss"] == pytest.approx(reports["fp32"]["validation_loss"], rel=0.2)
    assert reports["bf16"]["validation_loss"] != reports["fp32"]["validation_loss"]


def test_a_failing_compiler_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "fx_graph_cache", False)
    objective, steps = accumulator("fp32", LossScale("fp32"))
    apply_layout(objective, World.alone(), Arithmetic(compile=True))
    events = EventWriter(tmp_path / "events", 0)
    settings: Any = type("Settings", (), {"micro_batch": 4, "batch": 4, "context": nullcontext()})
    world = World(0, 1, 0, 1, torch.device("cpu"), False)
    rehearsal = Rehearsal(None, world, settings, events, LiveSign(tmp_path, 0))  # type: ignore[arg-type]
    monkeypatch.setattr(rehearsal, "_job", type("Job", (), {"objective": objective}))
    feed = Feed(Numbers(), 0, torch.device("cpu"))
    rehearsal._try_batch(steps, feed, compiled=True)
    (warning,) = read_events(tmp_path, "warning")
    assert "torch.compile failed" in warning["message"]
    assert steps.run([Numbers().load(0, [1, 2, 4])], 0, 0, False).loss > 0
    assert all(p.grad is not None for n, p in objective.named_parameters() if "unused" not in n)


def test_a_scale_goes_on_where_it_was() -> None:
    scale = LossScale("fp16")
    assert not scale.accepts(math.inf) and scale.accepts(1.0)
    again = LossScale("fp16")
    again.load_state(scale.state())
    assert again.state() == scale.state() == (2.0**15, 1)
    again.load_state(LossScale("bf16").state())  # a run that was resumed in another precision
    assert again.value == 2.0**15
    plain = LossScale("fp32")
    plain.load_state(scale.state())
    assert plain.value == 1.0
