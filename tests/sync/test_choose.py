"""What `sync: auto` takes on fast, slow and very slow links, and that all-reduce in bf16 is never faster than that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutti.config import parse_config
from tutti.config.agreement import SyncConfig
from tutti.core import ConfigError
from tutti.resolve import Facts, resolve
from tutti.sync import check_sync
from tutti.sync.choose import choose
from tutti.sync.cost import CodecCost, Filled, Link, Measured, step_seconds
from tutti.sync.ladder import rungs

AUTO = SyncConfig(policy="auto")


def machine(mbit: float, latency: float = 1e-3, numbers: int = 10_000_000, members: int = 2) -> Measured:
    """10M parameters in 25 buckets that fill up over 0.6 s of a step of 0.9 s."""
    link = Link(latency, mbit * 1e6 / 8)
    buckets = tuple(Filled(((numbers // 25000, 1000),), 0.6 * (24 - place) / 25) for place in range(25))
    cheap, dear = CodecCost(1e-4, 3e-10), CodecCost(1e-3, 1e-8)
    codecs = dict.fromkeys(("fp32", "fp16", "bf16"), cheap) | dict.fromkeys(
        ("int8", "int4", "topk", "powersgd"), dear
    )
    links = dict.fromkeys(("fp32", "fp16", "bf16", "packets"), link)
    return Measured(0, members, 0.9, buckets, links, 0.01, codecs)


def chosen(mbit: float, sync: SyncConfig = AUTO, steps: int = 10_000, **facts: Any) -> str:
    return choose(rungs(sync, "bf16", steps), [machine(mbit, **facts)]).rung.name


def test_the_slower_the_link_the_more_is_given_up() -> None:
    assert chosen(10_000) == "allreduce fp32"
    assert chosen(350) == "allreduce bf16"
    assert chosen(200) == "allreduce int8"
    assert chosen(100) == "allreduce int4"
    assert chosen(10) == "diloco 20 int4"
    assert chosen(1) == "diloco 100 int4"


def test_what_is_given_stays() -> None:
    assert chosen(1, SyncConfig(policy="allreduce", codec="auto")) == "allreduce powersgd"
    assert chosen(10, SyncConfig(policy="auto", codec="bf16")).endswith(" bf16")
    assert chosen(10_000, SyncConfig(policy="diloco", codec="auto", every="auto")) == "diloco 10 fp32"
    assert chosen(1, SyncConfig(policy="auto", every=30)) == "diloco 30 int4"


def test_what_is_for_rounds_alone_stays_with_them() -> None:
    """Each rung is one that a file could say."""
    for rung in rungs(SyncConfig(policy="auto", fragments=4, merge=0.3), "bf16", 10_000):
        assert SyncConfig.model_validate(rung.sync.model_dump()) == rung.sync
        assert (rung.sync.fragments, rung.sync.merge) == (
            (4, 0.3) if rung.sync.policy == "diloco" else (1, 0.5)
        )


def test_a_short_run_has_no_long_rounds() -> None:
    assert chosen(1, steps=250) == "diloco 20 int4"
    assert chosen(1, steps=50) == "allreduce int4"


def test_the_reason_has_the_numbers() -> None:
    choice = choose(rungs(AUTO, "bf16", 10_000), [machine(100)])
    for part in ("sync = allreduce int4", "computes in 0.9 s", "100 Mbit/s and 1 ms", "allreduce bf16 2"):
        assert part in choice.reason, choice.reason


@settings(deadline=None, max_examples=60)
@given(
    mbit=st.floats(0.1, 1e5),
    latency=st.floats(1e-5, 1.0),
    numbers=st.sampled_from([25_000, 1_000_000, 100_000_000]),
    members=st.integers(2, 16),
)
def test_nothing_is_chosen_that_is_slower_than_bf16(
    mbit: float, latency: float, numbers: int, members: int
) -> None:
    facts = [machine(mbit, latency, numbers, members)]
    found = choose(rungs(AUTO, "fp32", 1000), facts).rung.sync
    assert step_seconds(found, facts) <= 1.05 * step_seconds(SyncConfig(codec="bf16"), facts) + 1e-9


def resolved(*overrides: str, processes: int | None = None) -> Any:
    config = parse_config(None, "test", ["train.precision=fp32", *overrides])
    return resolve(config, Facts(1000, 32, 10, processes))


def test_what_can_be_known_before_the_run() -> None:
    two = resolved("sync=auto", "replicas=2")
    assert two.config.sync.undecided and two.config.sync.membership == "auto"
    check_sync(two.config.sync, "fp32")
    one = resolved("sync=auto", "replicas=1")
    assert (one.config.sync.policy, one.config.sync.codec, one.config.sync.every) == ("allreduce", "fp32", 50)
    assert any("nobody to agree with" in choice for choice in one.choices)
    given_later = resolved("sync=auto", "sync.codec=int4", "replicas=2").config.sync
    assert (given_later.policy, given_later.codec, given_later.every) == ("auto", "int4", "auto")
    fixed = resolved("sync.every=auto", "replicas=2").config.sync
    assert not fixed.undecided and fixed.every == 50
    with pytest.raises(ConfigError, match="Tutti's own launcher"):
        resolved("sync=auto", processes=2)
    with pytest.raises(ConfigError, match="nothing is left to choose from"):
        resolved("sync={policy: allreduce, codec: auto, implementation: ddp, then: zstd}", "replicas=2")


def test_outer_momentum_is_what_a_tenth_of_the_rounds_can_build_up() -> None:
    """Of 18, 100 and 4 rounds; what the user says stays, and the other goes with it."""
    found = []
    for more in (["train.steps=180"], ["train.steps=1000"], ["train.steps=40"]):
        run = resolved("sync=diloco", "sync.every=10", "replicas=2", *more)
        found.append((run.config.sync.outer_momentum, run.config.sync.outer_learning_rate))
    assert found == [(0.44, 0.85), (0.9, 0.7), (0.0, 1.0)]
    assert any("outer_momentum = 0, " in choice and "4 rounds" in choice for choice in run.choices)
    given = resolved("sync=diloco", "sync.outer_momentum=0.6", "replicas=2", "train.steps=100").config.sync
    assert (given.outer_momentum, given.outer_learning_rate) == (0.6, 0.8)
    both = resolved(
        "sync=diloco",
        "sync.outer_momentum=0.9",
        "sync.outer_learning_rate=0.7",
        "replicas=2",
        "train.steps=100",
    )
    assert not any("outer" in choice for choice in both.choices)
    assert resolved("sync=auto", "replicas=2").config.sync.outer_momentum == "auto"


@pytest.mark.parametrize(
    ("sync", "why"),
    [
        (
            {"policy": "server", "codec": "auto"},
            "what policy server takes is not predicted.*say codec and every",
        ),
        ({"policy": "gossip", "codec": "auto"}, "what policy gossip takes is not predicted"),
        ({"codec": "auto", "overlap": 1}, "what allreduce with overlap takes is not predicted.*say codec"),
        ({"policy": "local_sgd", "fragments": 3}, "fragments belong to policy diloco, not to local_sgd"),
        ({"policy": "gossip", "merge": 0.2}, "merge belongs to policy diloco, not to gossip"),
    ],
)
def test_what_is_not_predicted_has_to_be_said(sync: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SyncConfig(**sync)
