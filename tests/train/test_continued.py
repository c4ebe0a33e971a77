"""What a run that goes on keeps of what was chosen when it began, and what is chosen anew."""

from __future__ import annotations

from typing import Any

import pytest

from tutti.config import Config, load_config
from tutti.core.errors import ConfigError
from tutti.resolve import Facts, resolve
from tutti.starting.resuming import continued

POLICIES = {
    "allreduce": ("sync=allreduce",),
    "late": ("sync=allreduce", "sync.overlap=1"),
    "ddp": ("sync=allreduce", "sync.implementation=ddp"),
    "local_sgd": ("sync=local_sgd",),
    "diloco": ("sync=diloco",),
    "streaming": ("sync=diloco", "sync.fragments=2", "sync.merge=0.4"),
    "gossip": ("sync=gossip",),
    "server": ("sync=server",),
    "stale": ("sync=server", "sync.staleness=4"),
}


def resolved(config: Config, **facts: Any) -> Config:
    return resolve(config, Facts(1000, 16, 10, **facts)).config


def wanted(*words: str) -> Config:
    return load_config(None, ["train.precision=fp32", "replicas=2", *words])


def goes_on(before: tuple[str, ...], now: tuple[str, ...], **facts: Any) -> Config:
    """What a run that began by `before` is resumed with by `now`."""
    return resolved(continued(wanted(*now), resolved(wanted(*before), **facts)), **facts)


@pytest.mark.parametrize("now", POLICIES)
@pytest.mark.parametrize("before", POLICIES)
def test_another_policy_is_as_if_it_had_been_chosen_at_first(before: str, now: str) -> None:
    assert goes_on(POLICIES[before], POLICIES[now]).sync == resolved(wanted(*POLICIES[now])).sync


def test_what_was_chosen_for_a_policy_stays_while_that_does() -> None:
    """Of ten times as many rounds another momentum would be taken."""
    short, long = ("sync=diloco", "train.steps=500"), ("sync=diloco", "train.steps=5000")
    momentum = resolved(wanted(*short)).sync.outer_momentum
    assert goes_on(short, long).sync.outer_momentum == momentum != resolved(wanted(*long)).sync.outer_momentum


@pytest.mark.parametrize("before", POLICIES)
def test_auto_keeps_how_replicas_agreed(before: str) -> None:
    """Also where the file asks for fragments, should there be rounds."""
    former = resolved(wanted(*POLICIES[before])).sync
    kept = goes_on(POLICIES[before], ("sync=auto", "sync.fragments=2")).sync
    told = ("policy", "codec", "every", "fragments", "merge", "staleness", "delay_compensation")
    assert [getattr(kept, key) for key in told] == [getattr(former, key) for key in told]


def test_more_workers_than_samples_are_refused_in_words() -> None:
    with pytest.raises(
        ConfigError, match=r"run 'run' cannot go on so: train.batch is 32: fewer samples than the 40"
    ):
        goes_on(("train.steps=5",), ("train.steps=5", "replicas=40"))


@pytest.mark.parametrize(
    ("before", "now", "steps"),
    [
        (("train.epochs=3",), ("train.epochs=3",), 9),
        (("train.epochs=3",), ("train.epochs=10",), 31),
        (("train.epochs=3",), (), 9),
        (("train.steps=9",), ("train.epochs=10",), 31),
        (("train.epochs=3",), ("train.steps=2000",), 2000),
        (("train.steps=9",), (), 9),
    ],
)
def test_it_is_as_long_as_is_said_last(before: tuple[str, ...], now: tuple[str, ...], steps: int) -> None:
    """100 samples, 32 a step."""
    found = goes_on(before, now, samples=100).train
    assert (found.steps, found.epochs) == (steps, None)


def test_what_began_before_heads_had_a_rate_goes_on_as_it_was() -> None:
    new = {"labelled": True, "pretrained": True, "new_head": True, "samples": 100}
    words = ("task=classify", "model=trained", "train.learning_rate=1e-4")
    former = resolved(wanted(*words), **new)
    assert former.train.head_rate == 10
    assert resolved(continued(wanted(*words), former), **new).train.head_rate == 10
    before = former.model_copy(update={"train": former.train.model_copy(update={"head_rate": "auto"})})
    assert resolved(continued(wanted(*words), before), **new).train.head_rate == 1
