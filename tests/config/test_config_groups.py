"""Several groups in one file: what each gets, and what is wrong with them, said at its place."""

from __future__ import annotations

from typing import Any

import pytest

from tutti.config import Config, InvalidConfig, dump_config, group_configs, parse_config
from tutti.core.errors import ConfigError


def groups_of(text: str, *overrides: str) -> list[Config]:
    return group_configs(parse_config(text, "c.yaml", overrides))


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text, "c.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_number_of_groups_are_the_same_but_for_their_first_weights() -> None:
    one, other = groups_of("name: x\ntrain: {seed: 5, steps: 7}\ngroups: 2\ncooperate: {every: 10}\n")
    assert (one.name, one.runs, one.groups) == ("0", "runs/x/groups", 1)
    assert (one.model.seed, other.model.seed) == (5, 6)
    assert one.train == other.train and one.train.steps == 7
    assert one.cooperate.max_age == 2 * 2 * 10
    for group in (one, other):
        assert parse_config(dump_config(group), "") == group


@pytest.mark.parametrize(
    ("file", "own", "expected"),
    [
        ("", "{model: 1M}", {"model": {"size": "1M"}}),
        ("model: {path: x}", "{model: {size: 1M}}", {"model": {"size": "1M", "path": None}}),
        ("model: {size: 1M, dropout: 0.1}", "{model: {size: 2M}}", {"model": {"size": "2M", "dropout": 0.1}}),
        ("model: {size: 1M, dropout: 0.1}", "{model: 2M}", {"model": {"size": "2M", "dropout": None}}),
        ("train: {steps: 7}", "{train: {warmup: 3}}", {"train": {"steps": 7, "warmup": 3}}),
        ("sync: {every: 9}", "{sync: diloco}", {"sync": {"policy": "diloco", "every": 50}}),
        ("sync: {every: 9}", "{sync: {policy: diloco}}", {"sync": {"policy": "diloco", "every": 9}}),
        ("", "{layout: 2, replicas: 3}", {"layout": {"shard": 2}, "replicas": 3}),
        ("", "{model: {seed: 9, size: 1M}}", {"model": {"seed": 9}}),
    ],
)
def test_what_a_group_has_of_its_own(file: str, own: str, expected: dict[str, Any]) -> None:
    last = groups_of(f"{file}\ngroups: [{{}}, {own}]\n")[1].model_dump()
    for key, value in expected.items():
        wanted = value.items() if isinstance(value, dict) else ()
        assert all(last[key][name] == inner for name, inner in wanted) if wanted else last[key] == value


def test_every_problem_at_its_place() -> None:
    text = "groups:\n  - {model: 1M}\n  - model: 4M\n    train:\n      stepz: 7\n    sync: diloko\n"
    assert problems(text) == [
        "c.yaml:5:7: groups[1].train.stepz: unknown key; did you mean 'steps'?",
        "c.yaml:6:11: groups[1].sync.policy: should be `allreduce`, `local_sgd`, `diloco`, "
        "`gossip`, `server` or `auto`; got text 'diloko'; "
        "did you mean 'diloco'?",
    ]
    (known, unknown) = problems("groups:\n  - {data: {source: x}}\n  - {modle: 4M}\n")
    assert known.startswith("c.yaml:2:6: groups[0].data: holds for all groups together")
    assert unknown == "c.yaml:3:6: groups[1].modle: unknown key; did you mean 'model'?"
    assert problems("name: x", "groups=[{}, {modle: 4M}]")[0].startswith("override groups=")
    (batch,) = problems("train: {batch: 1}\ngroups: [{replicas: 2}, {}]")
    assert "groups[0]: train.batch is 1: fewer samples than the 2 workers" in batch
    assert "of two or more" in problems("groups: [{model: 1M}]")[0]
    assert "above 0 or a list" in problems("groups: 0")[0]
    assert "groups[0]: should be a mapping" in problems("groups: [1, {}]")[0]


@pytest.mark.parametrize("layout", ["tensor", "pipeline", "context"])
def test_layouts_without_whole_logits_of_whole_samples_are_refused(layout: str) -> None:
    (base,) = problems(f"layout: {{{layout}: 2}}\ngroups: 2")
    (own,) = problems(f"groups: [{{}}, {{layout: {{{layout}: 2}}}}]")
    assert f"layout.{layout} splits" in base and "use shard" in base
    assert "group 1 cannot cooperate" in own
    assert groups_of("layout: {shard: 2}\ngroups: 2")[0].layout.shard == 2


def test_what_nobody_has_counted_or_compared_is_refused() -> None:
    assert "memory.budget does not count" in problems("memory: 2GB\ngroups: 2")[0]
    with pytest.raises(ConfigError, match="a module of your own"):
        group_configs(Config(groups=2, model={"python": "Net"}))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["batch", "seed"])
def test_predictions_need_the_same_samples(key: str) -> None:
    text = f"groups: [{{}}, {{train: {{{key}: 4}}}}]"
    assert f"train.{key} is 4" in problems(text)[0] and "exchange: weights" in problems(text)[0]
    assert getattr(groups_of(f"{text}\ncooperate: {{exchange: weights}}")[1].train, key) == 4


def test_groups_made_in_python_are_judged_as_well() -> None:
    with pytest.raises(ConfigError, match=r"groups\[1\]"):
        group_configs(Config(groups=[{}, {"train": {"steps": 0}}]))
