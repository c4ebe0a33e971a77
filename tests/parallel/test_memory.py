"""What a rank is said to need is what its tensors take; and a model larger than its memory trains all the same."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, LlamaConfig, MixtralConfig, MixtralForCausalLM

from benchmarks.memory.run import CASES, SEQUENCE, WITHIN, Case, config_of, foretold, peaks_of
from ranks import run_ranks
from tutti.config import Config, LayoutConfig, SyncConfig
from tutti.config.fields import bytes_of
from tutti.core import ConfigError
from tutti.hardware.tracked import TensorBytes
from tutti.models.blueprint import Blueprint
from tutti.parallel import Arithmetic, apply_language_layout, arrange
from tutti.parallel.memory import MemoryModel, Thrift
from tutti.parallel.thrift import check_offload, choose_thrift, possible_offloads, ways
from tutti.parallel.weigh import weigh_block
from tutti.sync import Ledger, Totals
from tutti.sync.held import held_by
from tutti.sync.policy import local_part
from tutti.tasks import find_manner
from tutti.train.average import WeightAverage
from tutti.train.replicas import make_policy

#: Of the benchmark's cases, those that are tried every day.
EVERY_DAY = [
    Case({}, micro_batch=8),
    Case({"tensor": 2}, micro_batch=8),
    Case({"shard": 2}, optimizer="adafactor"),
]


def model_of(samples: int, replicas: int = 1, **others: Any) -> MemoryModel:
    """Of the benchmark's Llama on one rank of each replica."""
    plan = Blueprint(config_of("llama"), seed=0, end_token=0)
    twin = plan.twin()
    return MemoryModel(
        plan.lay_out(),
        twin,
        find_manner(twin),
        LayoutConfig(),
        SEQUENCE,
        "adamw",
        replicas,
        samples,
        **others,
    )


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


TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
TABLES: list[Any] = [
    LlamaConfig(vocab_size=2000, tie_word_embeddings=True, **TINY),
    LlamaConfig(vocab_size=2001, tie_word_embeddings=True, **TINY),
    LlamaConfig(vocab_size=2001, tie_word_embeddings=False, **TINY),
    Gemma2Config(vocab_size=2000, tie_word_embeddings=True, head_dim=8, **TINY),
    Gemma2Config(vocab_size=2000, tie_word_embeddings=False, head_dim=8, **TINY),
]


def parameters_on(rank: int) -> list[int]:
    """Bytes of what this rank has of each model, cut in two by `tensor`."""
    world = arrange(LayoutConfig(tensor=2), torch.device("cpu"), 0, 1)
    found = []
    for config in TABLES:
        plan = Blueprint(config, seed=0, end_token=0)
        manner = find_manner(plan.twin())
        split = apply_language_layout(plan, manner, world, Arithmetic(), micro_batch=1, sequence=16)
        found.append(sum(local_part(p.detach()).nbytes for p in split.objective.parameters()))
    return found


def test_what_tensor_leaves_whole_is_counted_whole() -> None:
    """Embedding and head of a vocabulary that is not divisible, or whose logits the architecture changes."""
    for found in run_ranks(2, parameters_on):
        for config, bytes_ in zip(TABLES, found, strict=True):
            plan = Blueprint(config, seed=0, end_token=0)
            twin = plan.twin()
            model = MemoryModel(
                plan.lay_out(), twin, find_manner(twin), LayoutConfig(tensor=2), 16, "adamw", 1, 1
            )
            need = model.need(Thrift("none", "none", 1))
            assert need.parameters == pytest.approx(bytes_, rel=0.01), config


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
    proposed = refused.value.hint.removeprefix("set memory.budget to ").partition(",")[0]
    budget = Config.model_validate({"memory": proposed}).memory.budget
    assert budget is not None and least <= bytes_of(budget) < least + 1e6
    choose_thrift(model, bytes_of(budget), ways("auto", "auto", 8, smaller=True))


DILOCO = {"policy": "diloco", "outer_learning_rate": 0.7, "outer_momentum": 0.9}
SYNCS: list[dict[str, Any]] = [
    {},
    {"codec": "bf16"},
    {"codec": "int8"},
    {"codec": "powersgd"},
    {"overlap": 1},
    {"overlap": 1, "codec": "topk"},
    {"policy": "local_sgd", "every": 2},
    {"policy": "local_sgd", "every": 2, "codec": "int4"},
    DILOCO | {"every": 2},
    DILOCO | {"every": 2, "codec": "topk"},
    {"policy": "gossip", "every": 2},
    {"policy": "gossip", "every": 2, "codec": "int8"},
]


def bytes_alive() -> int:
    """Of all tensors that came into this process since `gc.freeze`."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def kept_by(rank: int, replicas: int) -> list[float]:
    """Of all SYNCS, on this rank."""
    gc.freeze()  # modules are not looked through
    return [kept_by_one(sync, rank, replicas) for sync in SYNCS]


def kept_by_one(sync: dict[str, Any], rank: int, replicas: int) -> float:
    """Bytes a parameter that a policy has after the last meeting, beside weights and, in buffers, gradients."""
    config = Config.model_validate(
        {"replicas": replicas, "sync": {"membership": "fixed"} | sync, "train": {"batch": replicas}}
    )
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))
    numbers = sum(p.numel() for p in model.parameters())
    world = arrange(LayoutConfig(), torch.device("cpu"), rank, replicas)
    state: Any = SimpleNamespace(ledger=Ledger())
    before = bytes_alive()
    policy = make_policy(config, world, state, None, 0, give=dict, take=print, say=print)
    policy.attach(model)
    policy.start(0, 4)
    for step in (1, 2, 3, 4):
        policy.zero_gradients(model)
        policy.samples(step)
        with policy.micro_batch(last=True):
            model(torch.ones(1, 256)).sum().backward()
        policy.after_step(step, 4, policy.before_step(Totals(1.0, 1, 0, False)))
    policy.settle()
    for parameter in model.parameters():
        parameter.grad = None
    held = held_by(config.sync, replicas)
    deadline = time.monotonic() + 5
    while True:
        kept = (bytes_alive() - before) / numbers - 4 * held.buffers
        # Threads that exchanged let go of it a moment after they have said that they are done.
        if kept <= held.kept + 0.2 or time.monotonic() > deadline:
            return kept
        time.sleep(0.05)


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_a_policy_keeps_is_counted(replicas: int) -> None:
    """Against the tensors that are there when it has exchanged."""
    said = [held_by(SyncConfig(**sync), replicas).kept for sync in SYNCS]
    for found in run_ranks(replicas, kept_by, replicas):
        for sync, kept, expected in zip(SYNCS, found, said, strict=True):
            assert kept == pytest.approx(expected, abs=0.2), sync


def test_a_budget_counts_what_the_policy_keeps_and_the_average() -> None:
    """8 bytes a parameter of DiLoCo and 4 of an average, wherever AdamW's state lies."""
    diloco = SyncConfig(policy="diloco")
    numbers = sum(p.numel() for p in model_of(8).model.parameters())
    for offload in ("none", "optimizer", "all"):
        needs = [
            model_of(8, 2, **others).need(Thrift("none", offload, 8))
            for others in ({}, {"sync": diloco}, {"sync": diloco, "average": True})
        ]
        assert [need.kept / numbers for need in needs] == [0, 8, 12]
    served = model_of(8, 2, sync=SyncConfig(policy="server"))
    for need in served._moments(Thrift("none", "none", 8), 0):
        assert (need.optimizer > 0) == (need.moment == "save")


def test_the_average_of_the_weights_is_as_large_as_they_are() -> None:
    model = nn.Linear(256, 256)
    optimizer = torch.optim.AdamW(model.parameters())
    WeightAverage([optimizer], 10.0)
    states = [state for values in optimizer.state.values() for state in values.values()]
    assert sum(state.nbytes for state in states) == pytest.approx(12 * 256 * 257, rel=1e-3)


@pytest.mark.parametrize("sync", ["auto", {"codec": "auto"}])
def test_a_budget_needs_a_decided_agreement(sync: Any) -> None:
    with pytest.raises(ValueError, match="counts what sync keeps"):
        Config.model_validate({"memory": "2GB", "sync": sync, "replicas": 2})


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
