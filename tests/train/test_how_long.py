"""How long a run is, and how much it takes in a step, where the user leaves it to us."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tutti.config import load_config
from tutti.core.errors import ConfigError
from tutti.resolve import Facts, _replicas, resolve


def resolved(*words: str, **facts: Any) -> Any:
    config = load_config(None, ["train.precision=fp32", *words])
    return resolve(config, Facts(1000, 16, 10, labelled=True, pretrained=True, **facts))


@pytest.mark.parametrize(
    ("words", "facts", "batch", "said"),
    [
        (("replicas=1",), {}, 32, False),
        (("replicas=1", "train.batch=5"), {"together": 16}, 5, False),
        (("replicas=1",), {"together": 16}, 4, True),
        (("replicas=1",), {"together": 24}, 2, True),
        (("replicas=3",), {"together": 64}, 3, True),
        (("replicas=2", "layout=20"), {}, 40, True),
    ],
)
def test_a_step_has_so_many_samples(
    words: tuple[str, ...], facts: dict[str, int], batch: int, said: bool
) -> None:
    found = resolved(*words, samples=100, **facts)
    assert found.config.train.batch == batch
    assert any(choice.startswith(f"train.batch = {batch}") for choice in found.choices) == said


@pytest.mark.parametrize(
    ("words", "facts", "workers"),
    [(("train.batch=2",), {"processes": 4}, 4), (("train.batch=3", "layout.shard=2"), {"processes": 4}, 4)],
)
def test_fewer_samples_than_workers_that_were_started_are_refused(
    words: tuple[str, ...], facts: dict[str, int], workers: int
) -> None:
    with pytest.raises(ConfigError, match=rf"train\.batch is .: fewer samples than the {workers} workers"):
        resolved(*words, samples=100, **facts)


def test_no_more_devices_are_taken_than_have_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    for words, replicas in ((("train.batch=6",), 6), (("train.batch=6", "layout.shard=2"), 3), ((), 8)):
        config = load_config(None, ["train.precision=fp32", *words])
        assert _replicas(config, Facts(1000, 16, 10), 6 if words else 32)[0] == replicas


@pytest.mark.parametrize(("samples", "steps"), [(24, 100), (1000, 625), (1_000_000, 93_750)])
def test_few_examples_are_seen_often_enough(samples: int, steps: int) -> None:
    """24: 20 epochs would be 15 steps; 1000: 20 epochs; a million: 3 epochs."""
    assert resolved("replicas=1", samples=samples).config.train.steps == steps


@pytest.mark.parametrize(
    ("replicas", "tokens", "batch", "micro"),
    [
        (1, 16, 32, 32),
        (2, 16, 32, 24),  # one pass also for the worker that is up to three times as fast as the other
        (4, 16, 32, 12),
        (32, 16, 32, 1),
        (2, 256, 32, 24),
        (2, 512, 32, 8),  # more would be too much at once
        (1, 8192, 32, 1),
    ],
)
def test_a_faster_worker_makes_one_pass_as_well(replicas: int, tokens: int, batch: int, micro: int) -> None:
    words = [f"replicas={replicas}", f"train.batch={batch}", "train.precision=fp32"]

    def micro_batch(*more: str) -> Any:
        return resolve(load_config(None, [*words, *more]), Facts(1000, tokens, 10)).config.train.micro_batch

    assert micro_batch() == micro
    assert micro_batch("memory.budget=1GB") <= batch // replicas  # where every sample counts


@pytest.mark.parametrize(
    ("words", "new", "rate", "said"),
    [
        (("train.learning_rate=1e-4",), True, 10.0, True),
        (("train.learning_rate=1e-4", "tune.method=last"), True, 3.3, True),
        (("train.learning_rate=1e-4", "tune.method=lora"), True, 1.0, False),
        (("train.learning_rate=1e-4",), False, 1.0, False),
        ((), True, 6.0, True),  # of so small a model the rate is large
        (("train.learning_rate=1e-3",), True, 3.0, True),
        (("train.learning_rate=1e-2", "train.optimizer=adafactor"), True, 3.0, True),
        (("train.learning_rate=4e-3",), True, 1.0, False),
        (("train.head_rate=4",), True, 4.0, False),
    ],
)
def test_a_new_head_learns_faster_than_what_it_stands_on(
    words: tuple[str, ...], new: bool, rate: float, said: bool
) -> None:
    found = resolved("task=classify", "model=trained", *words, samples=100, new_head=new)
    assert found.config.train.head_rate == rate
    assert (
        any(choice.startswith(f"train.head_rate = {rate:g}: the head is new") for choice in found.choices)
        == said
    )


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (("recipe=auto",), 6),
        (("recipe=auto", "regularise.r_drop=0.5"), 6),
        (("regularise.r_drop=0.5",), 11),
        (("recipe=auto", "regularise.adversarial=0.5"), 11),
        (("recipe=auto", "train.epochs=4"), 4),
    ],
)
def test_a_recipe_that_computes_all_twice_takes_half_the_epochs(words: tuple[str, ...], epochs: int) -> None:
    facts = {"samples": 9_003, "dropout": True}
    found = resolved("task=classify", "model=trained", "replicas=1", *words, **facts)
    assert found.config.train.steps == round(epochs * 9_003 / 32)
