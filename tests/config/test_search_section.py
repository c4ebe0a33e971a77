"""The section `search`: what it may say, and that everything wrong in it is said at its place."""

from __future__ import annotations

import pytest

from tutti.config import (
    Choice,
    Config,
    InvalidConfig,
    Range,
    dump_changes,
    dump_config,
    parse_config,
    search_space,
    with_settings,
)
from tutti.config.describe import all_keys, field_at, section_of
from tutti.config.searchable import why_fixed
from tutti.core.errors import ConfigError

LABELS = "task: classify\nmodel: some/model\ntune: last\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("train.learning_rate: 1e-5..1e-3", Range("train.learning_rate", 1e-5, 1e-3, True, False)),
        (
            "train.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}",
            Range("train.learning_rate", 1e-5, 1e-3, True, False),
        ),
        ("train.weight_decay: 0..0.3", Range("train.weight_decay", 0, 0.3, False, False)),
        ("train.weight_decay: 0.1..0.3", Range("train.weight_decay", 0.1, 0.3, False, False)),
        ("train.warmup: 1..100", Range("train.warmup", 1, 100, True, True)),
        ("train.warmup: {low: 1, high: 100, log: false}", Range("train.warmup", 1, 100, False, True)),
        ("tune.layers: [1, 2, 4]", Choice("tune.layers", (1, 2, 4))),
        ("train.warmup: [auto, 8]", Choice("train.warmup", ("auto", 8))),
        ("train.clip: [1.0, null]", Choice("train.clip", (1.0, None))),
        ("task.balance: [true, false]", Choice("task.balance", (True, False))),
        ("data.sequence: [32, 64]", Choice("data.sequence", (32, 64))),
    ],
)
def test_what_it_may_say(said: str, expected: Range | Choice) -> None:
    config = parse_config(f"{LABELS}search: {{{said}}}", "c.yaml")
    assert search_space(config) == [expected]
    assert parse_config(dump_config(config), "") == config
    assert parse_config(dump_changes(config), "") == config
    again = config.model_copy(update={"search": {expected.key: expected.as_setting()}})
    assert search_space(again) == [expected]
    key, _, values = said.partition(": ")
    assert search_space(parse_config(LABELS, "c.yaml", [f"search.{key}={values}"])) == [expected]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search: {train.lr: 1..2}", "1:10: search.train.lr: unknown key; did you mean 'train.learning_rate'?"),
        ("search: {trian.batch: [1, 2]}", "1:10: search.trian.batch: unknown key; did you mean 'train.batch'?"),
        ("search: {learning_rate: 1..2}", "did you mean 'train.learning_rate'?"),
        ("search: {train: 3}", "search.train: is a section; name a key in it: train.steps"),
        ("search: {name: [a, b]}", "search.name: is not searched: it does not change what a run learns"),
        ("search: {data.source: [a, b]}", "is not searched: it decides what is measured"),
        ("search: {data.sequence: [32, 64]}", "is not searched: it decides what is measured"),
        ("search: {train.seed: 1..9}", "is not searched: a lucky seed"),
        ("search: {replicas: [1, 2]}", "is not searched: it changes what a run costs"),
        ("search: {train.batch: [4]}", "two values or more can be chosen from; got 1; to fix it, write train.batch=4"),
        ("search: {train.batch: []}", "two values or more can be chosen from; got 0"),
        ("search: {train.batch: [4, 4]}", "the number 4 stands there twice"),
        ("search: {train.batch: 4}", "should be a range such as 1e-5..1e-3, or a list of values; got the number 4"),
        ("search: {train.batch: }", "got nothing"),
        ("search: {train.batch: [4, -1]}", "1:27: search.train.batch[1]: train.batch should be a whole number above 0"),
        ("search: {train.optimizer: [adamv, muon]}", "text 'adamv'; did you mean 'adamw'?"),
        ("search: {train.optimizer: 1..2}", "no range of numbers; list what to try: `adamw`, `adafactor` or `muon`"),
        ("search: {train.steps: 1.5..3}", "takes whole numbers; got 1.5 to 3"),
        ("search: {train.learning_rate: 1e-3..1e-5}", "from the smaller to the larger number"),
        ("search: {train.learning_rate: 1e-3..x}", "'x' is no number"),
        ("search: {train.learning_rate: 0..1}", "train.learning_rate should be a number above 0"),
        ("search: {train.dropout: 0..1}", "unknown key; did you mean 'model.dropout' or 'tune.dropout'?"),
        ("search: {train.weight_decay: {low: 0, high: 1, log: true}}", "a logarithmic range begins above 0; got 0"),
        ("search: {train.weight_decay: {low: 0, hgih: 1}}", "search.train.weight_decay.hgih: unknown key; a range has"),
        ("search: {train.weight_decay: {low: 0}}", "a range has numbers as low and high; high is nothing"),
        ("search: {train.clip: [[1], 2]}", "single values can be chosen from; got a list"),
        # Values that may be, but not with the rest.
        ("search: {tune.rank: [4, 8]}", "cannot be 4 here: tune: rank belongs to method lora and adalora"),
        ("train: {steps: 5}\nsearch: {train.epochs: [1, 2]}", "cannot be 1 here: train: steps and epochs both say"),
        ("train: {optimizer: muon}\nsearch: {train.layer_decay: [0.8, 1.0]}", "cannot be 0.8 here"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text, "c.yaml")
    (problem,) = caught.value.problems
    assert said in str(problem)
    with pytest.raises(ConfigError):
        search_space(Config.model_validate({"search": _plain(text)} | _rest(text)))


def _plain(text: str) -> object:
    import yaml

    return yaml.safe_load(text)["search"]


def _rest(text: str) -> dict[str, object]:
    import yaml

    return {key: value for key, value in yaml.safe_load(text).items() if key != "search"}


def test_every_problem_is_said_at_once() -> None:
    text = "search:\n  train.lr: 1..2\n  name: [a, b]\n  train.batch: [8, 16]\n"
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text, "c.yaml", ["search.train.clip=0..1"])
    assert [str(p).split(": ")[0] for p in caught.value.problems] == [
        "c.yaml:2:3",
        "c.yaml:3:3",
        "override search.train.clip=0..1",
    ]


def test_what_goes_only_with_another_value_that_is_tried_can_be() -> None:
    text = "train: {optimizer: muon}\nsearch: {train.layer_decay: [0.8, 1.0], train.optimizer: [adamw, muon]}"
    assert len(search_space(parse_config(text, "c.yaml"))) == 2


def test_settings_of_a_method_are_tried_beside_other_methods() -> None:
    text = f"{LABELS}search: {{tune.method: [last, lora], tune.rank: [4, 16], tune.layers: [1, 3]}}"
    config = parse_config(text, "c.yaml")
    assert len(search_space(config)) == 3
    one = with_settings(config, {"tune.method": "lora", "tune.rank": 16, "tune.layers": 3})
    assert (one.tune.method, one.tune.rank, one.tune.layers) == ("lora", 16, 2)
    with pytest.raises(ConfigError, match="rank belongs to method"):
        with_settings(config, {"tune.rank": 16})


def test_settings_take_the_place_of_others() -> None:
    config = with_settings(parse_config("model: 1M", "c"), {"train.learning_rate": 1e-3, "name": "3"})
    assert (config.train.learning_rate, config.name, config.model.size) == (1e-3, "3", "1M")
    with pytest.raises(ConfigError, match="layer_decay is for optimizer adamw"):
        with_settings(Config(), {"train.layer_decay": 0.8, "train.optimizer": "muon"})


def test_what_is_searched_is_what_changes_what_is_learned() -> None:
    free = {
        ".".join(path)
        for path in all_keys()
        if section_of(field_at(path)) is None and why_fixed(".".join(path), Config()) is None  # type: ignore[arg-type]
    }
    assert {"train.learning_rate", "train.epochs", "tune.rank", "model.dropout", "sync.every"} <= free
    assert {key.partition(".")[0] for key in free} == {
        *("model", "task", "tune", "recipe", "regularise", "distil", "remember", "train", "sync")
    }
    assert not free & {"train.seed", "model.seed", "train.micro_batch", "sync.membership"}
