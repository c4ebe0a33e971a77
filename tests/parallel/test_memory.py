"""What a rank is said to need is what its tensors take; and a model larger than its memory trains all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM

from benchmarks.memory.run import CASES, SEQUENCE, WITHIN, Case, config_of, foretold, peaks_of
from ranks import run_ranks
from tutti.config import LayoutConfig
from tutti.core import ConfigError
from tutti.hardware.tracked import TensorBytes
from tutti.models.blueprint import Blueprint
from tutti.parallel import Arithmetic, apply_language_layout, arrange
from tutti.parallel.memory import MemoryModel, Thrift
from tutti.parallel.thrift import check_offload, choose_thrift, possible_offloads, ways
from tutti.parallel.weigh import weigh_block
from tutti.tasks import find_manner

#: Of the benchmark's cases, those that are tried every day.
EVERY_DAY = [
    Case({}, micro_batch=8),
    Case({"tensor": 2}, micro_batch=8),
    Case({"shard": 2}, optimizer="adafactor"),
]


def model_of(samples: int) -> MemoryModel:
    """Of the benchmark's Llama on one rank."""
    plan = Blueprint(config_of("llama"), seed=0, end_token=0)
    twin = plan.twin()
    return MemoryModel(plan.lay_out(), twin, find_manner(twin), LayoutConfig(), SEQUENCE, "adamw", 1, samples)


def test_experts_can_be_weighed() -> None:
    """In fp32, for which their usual products have no shapes."""
    config = MixtralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32,
    )  # fmt: skip
    twin = MixtralForCausalLM(config)
    small, large = (
        weigh_block(twin, find_manner(twin), samples, 16, None, cast=False).kept for samples in (2, 4)
    )
    assert 0 < small < large


@pytest.mark.parametrize("cases", [EVERY_DAY, pytest.param(CASES, marks=pytest.mark.slow)], ids=len)
def test_the_peak_is_what_was_said(cases: list[Case]) -> None:
    """The largest of the ranks' peaks, for every case."""
    for size in {case.ranks for case in cases}:
        some = [case for case in cases if case.ranks == size]
        ranks = run_ranks(size, peaks_of, some, timeout_seconds=240)
        for case, *peaks in zip(some, *ranks, strict=True):
            assert foretold(case)["said"] == pytest.approx(max(peaks), rel=WITHIN), case.name


DEEP = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=176, num_hidden_layers=16, num_attention_heads=4,
    num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip


def built_on(rank: int, layouts: list[dict[str, Any]]) -> list[int]:
    """Most bytes at once while the model comes to be on this rank."""
    peaks = []
    for layout in layouts:
        world = arrange(LayoutConfig(**layout), torch.device("cpu"), 0, 1)
        plan = Blueprint(DEEP, seed=0, end_token=0)
        with TensorBytes() as tracked:
            manner = find_manner(plan.twin())
            apply_language_layout(plan, manner, world, Arithmetic(), micro_batch=1, sequence=16)
        peaks.append(tracked.peak)
    return peaks


def test_no_rank_ever_holds_the_whole_model() -> None:
    whole = 4 * sum(p.numel() for p in Blueprint(DEEP, seed=0, end_token=0).lay_out().parameters())
    layouts: list[dict[str, Any]] = [
        {"shard": 4},
        {"pipeline": 4},
        {"pipeline": 2, "tensor": 2},
    ]
    for rank, peaks in enumerate(run_ranks(4, built_on, layouts)):
        for layout, peak in zip(layouts, peaks, strict=True):
            # A quarter, and a unit with its twin while they are there.
            assert whole / 4 <= peak < 0.6 * whole, (
                f"{layout} on rank {rank}: {peak / whole:.2f} of the whole"
            )


def test_a_budget_takes_the_cheapest_way_that_fits() -> None:
    model = model_of(samples=8)
    every = ways("auto", "auto", 8, smaller=True)
    nothing = model.need(Thrift("none", "none", 8)).total
    plenty, _ = choose_thrift(model, nothing, every)
    assert (plenty.recompute, plenty.offload, plenty.micro_batch) == ("none", "none", 8)
    less, why = choose_thrift(model, nothing - 1, every)
    assert (less.recompute, less.offload) == ("none", "none") and less.micro_batch < 8
    assert "it would be 354 MB" in why
    fixed, _ = choose_thrift(model, nothing - 1, ways("auto", "none", 8, smaller=False))
    assert (fixed.recompute, fixed.micro_batch) == ("selective", 8)
    for budget in (300e6, 150e6, 100e6, 60e6, 45e6):
        thrift, _ = choose_thrift(model, round(budget), every)
        assert model.need(thrift).total <= budget


def test_a_budget_that_nothing_fits_says_by_how_much_and_what_would() -> None:
    model = model_of(samples=8)
    least = min(model.need(thrift).total for thrift in ways("auto", "auto", 8, smaller=True))
    with pytest.raises(ConfigError, match="is too small") as refused:
        choose_thrift(model, least - 5_000_000, ways("auto", "auto", 8, smaller=True))
    assert "5.0 MB more" in str(refused.value)
    assert f"{least / 1e6:.1f} MB" in refused.value.hint


@pytest.mark.parametrize("offload", ["optimizer", "all"])
def test_what_would_have_no_effect_on_an_accelerator_is_refused(offload: str) -> None:
    device = torch.device("cuda")
    with pytest.raises(ConfigError, match="needs a sharded model on cuda"):
        check_offload(offload, device, LayoutConfig(tensor=2))
    check_offload(offload, device, LayoutConfig(shard=2))
    check_offload(offload, torch.device("cpu"), LayoutConfig())


def test_what_adafactor_keeps_is_worth_no_file() -> None:
    with pytest.raises(ConfigError, match="nothing to keep elsewhere"):
        check_offload("optimizer", torch.device("cpu"), LayoutConfig(), "adafactor")
    check_offload("all", torch.device("cpu"), LayoutConfig(), "adafactor")
    assert "optimizer" not in possible_offloads(torch.device("cpu"), LayoutConfig(), "adafactor")


@pytest.mark.slow
def test_a_model_three_times_its_memory_trains_as_if_it_had_enough(tmp_path: Path) -> None:
    """State of 1.04 GB in 300 MB: without offloading it does not fit, with it the losses are the same."""

    def run(offload: str, limit_mb: int) -> Any:
        program = Path(__file__).with_name("thrifty.py")
        command = [sys.executable, str(program), offload, str(limit_mb), str(tmp_path)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=240).stdout)

    free = run("none", 0)
    assert free[-1] < 0.8 * free[0]
    assert run("none", 300) == "out of memory"
    assert run("all", 300) == pytest.approx(free, rel=1e-5)
