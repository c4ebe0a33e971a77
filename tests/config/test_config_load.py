"""Loading: what is accepted, and that everything wrong is said at once, at its place."""

import pickle
from pathlib import Path

import pytest

from tutti.config import Config, InvalidConfig, ModelConfig, dump_config, load_config, parse_config
from tutti.core.errors import ConfigError


def problems(text: str | None, *overrides: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text, "c.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_alone() -> None:
    assert load_config(None) == Config()


def test_numbers_and_words_are_read_as_written() -> None:
    config = parse_config(
        "name: no\ntrain:\n  learning_rate: 1e-3\n  weight_decay: 1E-2\n"
        "  steps: 10_000\n  betas: [0.9, .95]\n",
        "c",
    )
    assert config.name == "no"
    assert config.train.learning_rate == 1e-3
    assert config.train.weight_decay == 0.01
    assert config.train.steps == 10_000
    assert config.train.betas == (0.9, 0.95)
    assert parse_config("name: 2024-01-01", "c").name == "2024-01-01"
    assert parse_config("data: {text_field: 1:30}", "c").data.text_field == "1:30"
    assert parse_config("data: {text_field: 007}", "c").data.text_field == "007"


def test_short_forms() -> None:
    config = parse_config("model: 15M\nsync: diloco\nlayout: 2\n", "c.yaml")
    assert (config.model.size, config.sync.policy, config.layout.shard) == ("15M", "diloco", 2)
    assert parse_config("model: some/dir", "c").model.path == "some/dir"
    several = parse_config("task: classify\nmodel: a\nremember: [b, c]", "c", ["distil=[runs/a,runs/b]"])
    assert several.distil.teachers == ["runs/a", "runs/b"] and several.remember.source == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tune: {rank: 16, alpha: 32}", "rank belongs to method lora and adalora, not to full"),
        ("tune: {dropout: 0.1}", "dropout belongs to method lora and adalora"),
        ("model: m\ntune: {method: lora, layers: 3}", "layers belongs to method last, not to lora"),
        ("model: m\ntune: {method: last, tokens: 5}", "tokens belongs to method prompt"),
        ("distil: {weight: 0.9, hidden: 1}", "distil needs a model that teaches: distil.teacher"),
    ],
)
def test_what_would_have_no_effect_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        parse_config(f"task: classify\n{text}", "c.yaml")


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (None, ["train.steps=200"], {"train": {"steps": 200}}),
        (None, ["train.learning_rate=1e-3"], {"train": {"learning_rate": 1e-3}}),
        (None, ["model=15M"], {"model": {"size": "15M"}}),
        (None, ["model.size=15M", "model.dropout=0.1"], {"model": {"size": "15M", "dropout": 0.1}}),
        (None, ["model=15M", "model.dropout=0.1"], {"model": {"size": "15M", "dropout": 0.1}}),
        ("model: 5M", ["model.dropout=0.1"], {"model": {"size": "5M", "dropout": 0.1}}),
        ("sync: diloco", ["sync.every=20"], {"sync": {"policy": "diloco", "every": 20}}),
        ("sync: {every: 20}", ["sync=diloco"], {"sync": {"policy": "diloco"}}),
        ("sync: diloco", ["sync={policy: diloco, every: 7}"], {"sync": {"policy": "diloco", "every": 7}}),
        ("layout: 2", ["layout=4"], {"layout": {"shard": 4}}),
        ("name: a", ["name=b", "name=c"], {"name": "c"}),
        ("train:", ["train.steps=3"], {"train": {"steps": 3}}),
        ("train: {stepz: 3}", ["train={steps: 3}"], {"train": {"steps": 3}}),
        ("train: {steps: x}", ["train.steps=3"], {"train": {"steps": 3}}),
        ("train: {clip: .nan}", ["train.clip=null"], {"train": {"clip": None}}),
        (None, ["data.source=[a.txt, b.txt]"], {"data": {"source": ["a.txt", "b.txt"]}}),
        (None, [" train.steps = 5 "], {"train": {"steps": 5}}),
        ("model: {path: x}", ["model.path=null", "model.size=1M"], {"model": {"size": "1M"}}),
        ("train: {epochs: 3}", ["train.steps=5"], {"train": {"steps": 5}}),
        ("train: {epochs: x}", ["train.steps=5"], {"train": {"steps": 5}}),
        ("train: {steps: 5}", ["train.epochs=3"], {"train": {"epochs": 3}}),
        ("train: {epochs: 3}", ["train.steps=auto"], {"train": {"epochs": 3}}),
    ],
)
def test_overrides(text: str | None, overrides: list[str], expected: dict[str, object]) -> None:
    assert parse_config(text, "c.yaml", overrides) == Config.model_validate(expected)


def test_every_problem_at_once_each_at_its_place() -> None:
    text = """\
name: a b
steps: 100
data:
  soruce: x
  source: [1, a]
  validation: 0.5
  test: 0.6
train:
  steps: 1e3
  batch: 2
  batch: 3
  optimizer: adamv
  compile: yes
  micro_batch: "4"
  clip: .inf
layout: 2
replicas: 4
sync: dilocco
evaluate:
model: {size: 5m, dropout: 2}
"""
    found = problems(text, "train.stepz=4", "foo", "sync.every=x")
    starts = [
        "c.yaml:1:7: name: should be a name",
        "c.yaml:2:1: steps: unknown key; did you mean 'train.steps'?",
        "c.yaml:3:1: data: validation and test together",
        "c.yaml:4:3: data.soruce: unknown key; did you mean 'source'?",
        'c.yaml:5:12: data.source[0]: should be text; got the number 1; for text write "1"',
        "c.yaml:9:10: train.steps: should be a whole number above 0 or `auto`; got the number 1000.0; did",
        "c.yaml:10:3: train.batch is 2: fewer samples than the 8 workers",
        "c.yaml:11:3: train.batch: given twice, first in line 10",
        "c.yaml:12:14: train.optimizer: should be `adamw`, `adafactor` or `muon`; got text 'adamv'; did you mean",
        "c.yaml:13:12: train.compile: should be `true` or `false`; got text 'yes'; did you mean 'true'?",
        "c.yaml:14:16: train.micro_batch: should be a whole number above 0 or `auto`; got text '4'; remove",
        "c.yaml:15:9: train.clip: this number is not finite",
        "c.yaml:18:7: sync.policy: should be `allreduce`, `local_sgd`, `diloco`, `gossip`, `server` or `auto`; got "
        "text 'dilocco'; did you mean",
        "c.yaml:19:10: evaluate: is empty",
        "c.yaml:20:15: model.size: should be a size such as 800K, 15M or 1B, or `null`; got text '5m'; "
        "did you mean '5M'?",
        "c.yaml:20:28: model.dropout: should be a number of 0 or more, below 1, or `null`; got the number 2",
        "override train.stepz=4: train.stepz: unknown key; did you mean 'train.steps'?",
        "override foo: an override is written key=value",
        "override sync.every=x: sync.every: should be a whole number above 0 or `auto`; got text",
    ]
    assert len(found) == len(starts), "\n".join(found)
    for said, start in zip(found, starts, strict=True):
        assert said.startswith(start)


def test_what_was_taken_out_causes_no_complaint_of_its_own() -> None:
    assert problems("data: {test: 0.88, validation: x}") == [
        "c.yaml:1:32: data.validation: should be a number of 0 or more, below 1; got text 'x'"
    ]
    assert len(problems("model: {sizee: 5M}")) == 1
    assert len(problems("model: {size: 5Z}")) == 1


def test_several_combinations_at_once() -> None:
    found = problems(
        "layout: 2\nreplicas: 4\nsync: {implementation: ddp, min_replicas: 9}\ntrain: {batch: 2}"
    )
    assert ["ddp needs" in found[0], "min_replicas is 9" in found[1], "train.batch is 2" in found[2]] == [
        True
    ] * 3
    assert [said.split(": ")[0] for said in found] == ["c.yaml:3:8", "c.yaml:3:29", "c.yaml:4:9"]


def test_a_combination_that_an_override_made_points_at_the_override() -> None:
    (said,) = problems("data:\n  validation: 0.5\n", "data.test=0.5")
    assert said.startswith("override data.test=0.5: data: validation and test")
    (said,) = problems("replicas: 4", "train.batch=2")
    assert said.startswith("override train.batch=2: train.batch is 2")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "key=value"),
        ("=3", "is no key"),
        ("train..steps=3", "is no key"),
        ("train.steps=[1", "cannot be read"),
        ("train.steps=", "is empty"),
        ("name.x=3", "name holds a single value"),
        ("train.steps.x=3", "train.steps: should be a whole number"),
        ("trian.steps=3", "did you mean 'train'"),
        ("name=123", "for text write '\"123\"'"),
        ("train={steps:3}", "a space is missing"),
        ("data.source.0=a", "should be text"),
        ("train.clip=.inf", "not finite"),
        ("name=\x00", "control character"),
        ("name=\udc80", "control character"),
    ],
)
def test_bad_overrides(override: str, words: str) -> None:
    (said,) = problems("name: a", override)
    assert said.startswith(f"override {override}: ")
    assert words in said


def test_files_that_are_none(tmp_path: Path) -> None:
    def said(path: Path | str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert caught.value.hint
        return str(caught.value)

    def written(content: bytes) -> Path:
        path = tmp_path / "c.yaml"
        path.write_bytes(content)
        return path

    assert "there is no file" in said(tmp_path / "none.yaml")
    assert "an override follows the file" in said("train.steps=3")
    assert "is a directory" in said(tmp_path)
    written(b"name: a")
    assert "in it are: c.yaml" in said(tmp_path)
    assert "cannot be read" in said("x" * 5000)
    assert "cannot be read" in said("a\0b")
    assert "is empty" in said(written(b""))
    assert "is empty" in said(written(b"  \n\n"))
    assert "has no settings" in said(written(b"# nothing\n"))
    assert "is a binary file" in said(written(b"\x7fELF\0\0\0"))
    assert "larger than" in said(written(b"# " + b"x" * 300_000))
    assert "UTF-16" in said(written("name: a".encode("utf-16")))
    assert "c.yaml:2: byte 15 (0xfc) is not UTF-8" in said(written(b"name: a\ndata: M\xfc\n"))
    assert "`key: value` lines" in said(written(b"- a\n- b\n"))
    assert "`key: value` lines" in said(written(b"just words\n"))
    config = load_config(written(b"\xef\xbb\xbfname: bom\r\n"))
    assert config.name == "bom"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("train:\n\tsteps: 3", "2:1", "tab"),
        ("a: b: c", "1:5", "a `:` stands"),
        ("train: [1, 2", "", "not closed"),
        ("train: {a: 2", "", "not closed"),
        ("name: 'abc\n", "1:7", "never closed"),
        ("name: a\nwords\n", "", "is a `:` missing"),
        ("train:\n  steps: 3\n batch: 4", "3:2", "indentation"),
        ("name: a\n---\nname: b\n", "2:1", "second document"),
        ("name: *x", "1:7", "anchor"),
        ("name: a\x07b", "1:8", "control character"),
        ("a: &a [*a]", "", "refers to itself"),
        ("? [a]\n: b", "1:3", "a key must be a word"),
        ("[" * 2000, "", "too deeply"),
        ("a: " + "[" * 40 + "]" * 40, "", "too deeply"),
        ('name: "\\UFFFFFFFF"', "", "not YAML"),
        ("a: &a [" + "1," * 99 + "]\nb: &b [" + "*a," * 99 + "]\nc: [" + "*b," * 99 + "]", "", "values"),
    ],
)
def test_what_is_not_yaml(text: str, place: str, words: str) -> None:
    (said,) = problems(text)
    assert said.startswith(f"c.yaml:{place}")
    assert words in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("name: !!python/name:os.system", "name: the tag"),
        ("train: !!set {a}", "train: the tag"),
        ('name: "\\0"', "name: this text holds a character"),
        ('name: "\\ud800"', "name: this text holds a character"),
        ("train: {steps: 99999999999999999999}", "train.steps: this number is larger"),
        (f"train: {{steps: {'9' * 9000}}}", "train.steps: this number is larger"),
        ("train: {clip: 1e999}", "train.clip: this number is not finite"),
        ("train: {clip: !!float abc}", "train.clip: the tag"),
    ],
)
def test_a_value_that_cannot_be_read_does_not_hide_the_rest(line: str, words: str) -> None:
    first, second = problems(f"{line}\nreplicas: 0\n")
    assert words in first
    assert second.startswith("c.yaml:2:11: replicas: ")


def test_architectures_may_have_infinite_settings() -> None:
    config = parse_config("model: {config: {model_type: x, limit: [0.0, .inf]}}", "c.yaml")
    assert config.model.config == {"model_type": "x", "limit": [0.0, float("inf")]}
    assert parse_config(dump_config(config), "again") == config


def test_an_error_travels_between_processes() -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config("nam: a", "c.yaml", ["x"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.problems == caught.value.problems


def test_dump_spells_out_every_default_and_loads_again() -> None:
    config = Config(name="1e3", model=ModelConfig(size="15M"))
    text = dump_config(config)
    assert parse_config(text, "again") == config
    assert "name: '1e3'" in text
    for line in ("  kill_after_seconds: 300", "  shard: 1", "  path: null", "  prompts: []"):
        assert line in text.splitlines()
