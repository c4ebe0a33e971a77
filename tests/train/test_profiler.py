"""Which steps are measured and which are traced, and what stands in a trace, counted by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tutti.config.agreement import SyncConfig
from tutti.config.schema import Config
from tutti.config.training import TrainConfig
from tutti.core.events import EventWriter, read_events
from tutti.train.profiler import Profiling, StepProfiler, shortened, time_products

B, K, N = 16, 32, 8


def profiled(run: Path, plan: Profiling, steps: int) -> list[dict[str, object]]:
    """What is said of `steps` steps of one linear layer: a product forward, and one backward."""
    layer, x = nn.Linear(K, N, bias=False), torch.randn(B, K)
    profiler = StepProfiler(plan, torch.device("cpu"), EventWriter(run / "events", 3), run / "traces")
    for _ in range(steps):
        profiler.before_step()
        layer(x).sum().backward()
        layer.zero_grad()
    profiler.close()
    return list(read_events(run, "profile"))


def test_a_trace_is_of_the_steps_that_it_is_said_to_be_of(tmp_path: Path) -> None:
    plan = Profiling(warm_up=2, measured=3, traced=2)
    said = profiled(tmp_path, plan, plan.steps)
    assert [event["phase"] for event in said] == ["measuring", "tracing", "traced"]
    assert all(isinstance(event["counters"], dict) for event in said[:2])
    traced = said[2]
    assert traced["steps"] == 2 and traced["flops"] == 2 * (2 * B * K * N)
    products = [row for row in traced["heaviest"] if row["name"] == "aten::mm"]  # type: ignore[attr-defined]
    assert {row["shapes"]: row["calls"] for row in products} == {
        f"[{B}, {K}] [{K}, {N}]": 1,
        f"[{N}, {B}] [{B}, {K}]": 1,
    }
    assert set(traced["products"]) == {"fp32", "bf16"}  # type: ignore[call-overload]
    with gzip.open(tmp_path / "traces" / "rank-3.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("aten::mm") == 2 * 2


@pytest.mark.parametrize(("steps", "phases"), [(1, []), (3, ["measuring", "tracing"])])
def test_a_run_that_ends_early_says_what_it_has_seen(tmp_path: Path, steps: int, phases: list[str]) -> None:
    said = profiled(tmp_path, Profiling(warm_up=2, measured=3, traced=2), steps)
    assert [event["phase"] for event in said] == phases


def test_only_how_long_a_run_is_changes(tmp_path: Path) -> None:
    plan = Profiling(warm_up=3, measured=10, traced=3)
    config = Config(
        train=TrainConfig(steps=1000, patience=2),
        sync=SyncConfig(policy="diloco", every=50, synchronous_steps=5),
    )
    short = shortened(config, plan)
    assert (short.train.steps, short.evaluate.every, short.checkpoint.every) == (18, 18, 18)
    assert (short.train.patience, short.sync.every, short.sync.synchronous_steps) == (None, 10, 0)
    quick = config.model_copy(update={"sync": SyncConfig(policy="diloco", every=4)})
    assert shortened(quick, plan).sync.every == 4
    streaming = config.model_copy(update={"sync": SyncConfig(policy="diloco", every=50, fragments=2)})
    assert shortened(streaming, plan).sync.every == 50
    gossip = config.model_copy(update={"sync": SyncConfig(policy="gossip", every=50)})
    assert shortened(gossip, plan).sync.every == 50


def test_products_are_timed_in_both_formats() -> None:
    small, large = (time_products([(size, 256, 256)], torch.device("cpu")) for size in (8, 512))
    assert set(small) == set(large) == {"fp32", "bf16"}
    assert all(large[name] > 0 and small[name] > 0 for name in small)
    assert time_products([], torch.device("cpu")) == {}
