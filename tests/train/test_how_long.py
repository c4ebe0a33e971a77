"""How long a run is, and how much it takes in a step, where the user leaves it to us."""

from __future__ import annotations

from typing import Any

import pytest

from tutti.config import load_config
from tutti.resolve import Facts, resolve


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


@pytest.mark.parametrize(("samples", "steps"), [(24, 100), (1000, 625), (1_000_000, 93_750)])
def test_few_examples_are_seen_often_enough(samples: int, steps: int) -> None:
    """24: 20 epochs would be 15 steps; 1000: 20 epochs; a million: 3 epochs."""
    assert resolved("replicas=1", samples=samples).config.train.steps == steps
