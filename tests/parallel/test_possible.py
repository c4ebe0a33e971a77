"""What cannot be is refused with its reasons, and what is named instead is possible."""

from __future__ import annotations

from typing import Any

import pytest
from families import blueprint
from transformers import MambaConfig

from tutti.config import LayoutConfig
from tutti.core import ConfigError
from tutti.models.blueprint import Blueprint
from tutti.parallel import anything_else, check_layout, limits_of
from tutti.parallel.possible import Limits, nearest
from tutti.parallel.stages import share_out
from tutti.tasks import find_manner


def limits(family: str = "llama", samples: int = 8) -> Limits:
    plan = blueprint(family)
    return limits_of(plan.lay_out(), find_manner(plan.twin()), samples)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"tensor": 8}, "tensor = 8 does not divide the 4 attention heads of llama"),
        ({"context": 3}, "context = 3 does not divide the 4 attention heads"),
        ({"context": 4, "tensor": 2}, "tensor × context = 8 does not divide"),
        ({"pipeline": 5}, "pipeline = 5 are more than the 4 layers of llama"),
        (
            {"pipeline": 2, "schedule": "interleaved", "stages_per_rank": 3},
            "6 stages are more than the 4 layers",
        ),
        ({"shard": 9}, "shard = 9 is more than the 8 samples"),
        ({"shard": 2, "schedule": "interleaved"}, "schedule = interleaved needs a pipeline"),
        ({"shard": 2, "schedule": "gpipe"}, "schedule = gpipe needs a pipeline"),
        ({"pipeline": 2, "stages_per_rank": 3}, "stages_per_rank = 3 needs schedule = interleaved"),
        ({"tensor": 2, "zero": 2}, "zero = 2 needs shard or context"),
        ({"zero": 1}, "zero = 1 needs shard or context"),
    ],
)
def test_the_impossible_is_refused_with_its_reason(layout: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match="is impossible") as refused:
        check_layout(LayoutConfig(**layout), limits())
    assert reason in str(refused.value)


def test_every_reason_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        check_layout(LayoutConfig(tensor=3, pipeline=7), limits())
    assert "attention heads" in str(refused.value) and "layers" in str(refused.value)


def test_what_is_named_instead_is_possible_and_as_large() -> None:
    wanted = LayoutConfig(tensor=8)
    near = nearest(wanted, limits())
    assert near
    for other in near:
        assert other.ranks == 8
        check_layout(other, limits())
    with pytest.raises(ConfigError) as refused:
        check_layout(wanted, limits())
    assert "{pipeline: 2, tensor: 4}" in refused.value.hint


def test_a_setting_without_effect_is_refused_and_left_out_of_what_is_named_instead() -> None:
    with pytest.raises(ConfigError) as refused:
        check_layout(LayoutConfig(tensor=2, zero=2), limits())
    assert "{tensor: 2, zero: 2}" in str(refused.value)
    assert "{tensor: 2}" in refused.value.hint and "{shard: 2, zero: 2}" in refused.value.hint


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"context": 2}, {"pipeline": 2}])
def test_a_family_that_cannot_is_refused_by_name(layout: dict[str, int]) -> None:
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    plan = Blueprint(config, seed=0, end_token=0)
    with pytest.raises(ConfigError, match="mamba") as refused:
        check_layout(LayoutConfig(**layout), limits_of(plan.lay_out(), find_manner(plan.twin()), 8))
    assert "{shard: 2}" in refused.value.hint


def test_a_module_of_the_users_can_be_sharded_only() -> None:
    check_layout(LayoutConfig(shard=2), anything_else(8))
    with pytest.raises(ConfigError, match="your own module"):
        check_layout(LayoutConfig(tensor=2), anything_else(8))


def test_what_is_possible_passes() -> None:
    for family in ("llama", "gpt2", "bert", "gemma"):
        check_layout(LayoutConfig(pipeline=2, shard=2, context=2, tensor=2), limits(family))


@pytest.mark.parametrize(
    ("costs", "stages", "last", "expected"),
    [
        ([1.0] * 8, 4, 0.0, [0, 2, 4, 6]),
        ([1.0] * 8, 2, 2.0, [0, 5]),  # the head counts as two blocks
        ([1.0] * 4, 4, 9.0, [0, 1, 2, 3]),  # every stage has a block
        ([4.0, 1.0, 1.0, 1.0, 1.0], 2, 0.0, [0, 1]),
    ],
)
def test_stages_are_balanced(costs: list[float], stages: int, last: float, expected: list[int]) -> None:
    assert share_out(costs, stages, 0.0, last) == expected
