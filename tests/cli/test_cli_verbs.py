"""Every verb: help, the call that it makes, tables for people and one JSON object for programs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutti.config import load_config

Command = Callable[..., Any]
VERBS = [
    ["init"],
    ["validate"],
    ["schema"],
    ["doctor"],
    ["prepare"],
    ["profile"],
    ["train"],
    ["join"],
    ["chaos"],
    ["tune"],
    ["evaluate"],
    ["generate"],
    ["export"],
    ["deploy"],
    ["rollback"],
    ["releases"],
    ["runs"],
    ["runs", "list"],
    ["runs", "show"],
    ["runs", "compare"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help(verb: list[str], command: Command) -> None:
    answer = command(*verb, "--help")
    assert answer.code == 0
    assert "Usage: tutti" in answer.out
    if verb != ["runs"]:
        assert "--json" in answer.out


def test_help_lists_the_verbs(command: Command) -> None:
    for answer in (command("--help"), command("-h"), command()):
        for verb in VERBS:
            assert verb[0] in answer.out


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text("name: a\nmodel: 1M\n")
    return "c.yaml"


@pytest.mark.parametrize(
    ("words", "name", "positional", "named", "printed"),
    [
        (
            ["evaluate", "r"],
            "evaluate",
            [Path("runs/r")],
            {"split": "validation", "samples": None, "file": None},
            "bits_per_byte",
        ),
        (
            ["generate", "r", "def", "class", "--new-tokens", "5", "--temperature", "0", "--seed", "3"],
            "generate",
            [Path("runs/r"), ["def", "class"]],
            {"new_tokens": 5, "temperature": 0.0, "top_k": 50, "seed": 3, "suffix": ""},
            "class [bold]A",
        ),
        (
            ["export", "r"],
            "export",
            [Path("runs/r"), None],
            {"format": "hugging_face", "weights": None},
            "runs/a/export",
        ),
        (
            ["export", "r", "--to", "d.gguf", "--format", "gguf", "--weights", "q8_0"],
            "export",
            [Path("runs/r"), Path("d.gguf")],
            {"format": "gguf", "weights": "q8_0"},
            "runs/a/export",
        ),
        (["doctor"], "doctor", [], {}, "buy one"),
        (["runs", "list"], "list_runs", [Path("runs")], {}, "finished"),
        (["runs", "show", "r"], "show_run", [Path("runs/r")], {}, "checkpoints"),
        (
            ["runs", "compare", "r", "s"],
            "compare_runs",
            [[Path("runs/r"), Path("runs/s")]],
            {"png": None, "html": None},
            "loss",
        ),
    ],
)
def test_calls_and_answers(
    words: list[str],
    name: str,
    positional: list[object],
    named: dict[str, object],
    printed: str,
    command: Command,
    api: SimpleNamespace,
) -> None:
    answer = command(*words)
    assert (answer.code, api.calls) == (0, [(name, tuple(positional), named)])
    assert printed in answer.out
    answer = command(*words, "--json")
    assert answer.code == 0
    assert isinstance(answer.json, dict)
    assert "noise" in answer.err


def test_profile(command: Command, api: SimpleNamespace, config: str) -> None:
    answer = command("profile", "r", "train.batch=8", "--steps", "4", "--to", "there", "--json")
    assert (answer.code, answer.json) == (0, {"bottleneck": "data"})
    wanted = {"overrides": ["train.batch=8"], "steps": 4, "to": Path("there"), "console": False}
    assert api.calls == [("profile", (Path("runs/r"),), wanted)]
    assert command("profile", config, "train.batch=8", "--json").code == 0
    _, (given,), named = api.calls[1]
    assert (given.name, given.train.batch, named["overrides"]) == ("a", 8, ())
    assert command("profile", "typo.yaml", "--json").code == 2, "a file that is not there is no run"


def test_validate(command: Command, config: str, tmp_path: Path) -> None:
    answer = command("validate", config, "train.steps=7")
    assert answer.code == 0
    (tmp_path / "resolved.yaml").write_text(answer.out)
    assert load_config("resolved.yaml") == load_config(config, ["train.steps=7"])
    assert "is ok" in answer.err
    assert command("validate", config, "--json").json["config"]["name"] == "a"


def test_schema(command: Command) -> None:
    assert command("schema").json["properties"]["train"]
    assert command("schema", "--json").json == command("schema").json


def test_train(command: Command, config: str, api: SimpleNamespace) -> None:
    resolved = load_config(config, ["train.steps=7"])
    assert command("train", config, "train.steps=7", "--resume").code == 0
    answer = command("train", config, "train.steps=7", "--json")
    assert answer.json == {"state": "finished", "steps": 3, "train_loss": "nan"}
    alone = {"listen": None, "here": None, "key": None}
    assert api.calls == [
        ("train", (resolved,), {"resume": True, "console": True, **alone}),
        ("train", (resolved,), {"resume": False, "console": False, **alone}),
    ]
    assert command("train", config, "--listen", "h:1", "--here", "2", "--key", "k").code == 0
    assert api.calls[-1][2] == {
        "resume": False,
        "console": True,
        "listen": "h:1",
        "here": 2,
        "key": Path("k"),
    }
    api.answers["train"] = {"state": "interrupted"}
    assert command("train", config).code == 130
    answer = command("train", config, "--json")
    assert (answer.code, answer.json) == (130, {"state": "interrupted"})


def test_join(command: Command, api: SimpleNamespace) -> None:
    answer = command("join", "h:1")
    assert answer.code == 0 and "run a has ended" in answer.out
    named = {"replicas": None, "runs": Path("runs"), "cache": None, "console": True}
    assert api.calls == [("join", ("h:1", Path("join.key")), named)]
    api.answers["join"] = {"run": "a", "state": "left", "replicas": [1], "step": 3}
    answer = command("join", "h:1", "--key", "k", "--replicas", "2", "--runs", "r", "--cache", "c", "--json")
    assert (answer.code, answer.json["state"]) == (130, "left")
    named = {"replicas": 2, "runs": Path("r"), "cache": Path("c"), "console": False}
    assert api.calls[-1] == ("join", ("h:1", Path("k")), named)
    assert "the others go on" in command("join", "h:1").out


def test_chaos(command: Command, config: str, api: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("stop: 5s+1s\nkill: [1s]\n")
    words = ["--kill", "30s@1", "--kill", "every:60s", "--schedule", "s.yaml", "--seed", "3", "--compare"]
    answer = command("chaos", config, "train.steps=7", *words, "--json")
    assert (answer.code, answer.json["run"]) == (0, "a")
    schedule = {"stop": ["5s+1s"], "kill": ["1s", "30s@1", "every:60s"], "slow": [], "cut": []}
    named = {"seed": 3, "compare": True, "against": None, "console": False}
    ((name, (wanted, given), called),) = api.calls
    assert (name, wanted, given, called) == ("chaos", load_config(config, ["train.steps=7"]), schedule, named)
    answer = command("chaos", "--report", "b", "--against", "c")
    assert answer.code == 0 and "finished" in answer.out and "b/chaos.md" in answer.out
    assert api.calls[1:] == [("chaos_report", (Path("runs/b"),), {"against": Path("runs/c")})]


def test_prepare(command: Command, config: str, api: SimpleNamespace) -> None:
    answer = command("prepare", config)
    assert answer.code == 0
    assert "little text" in answer.out
    assert "3 documents were read of 2 files; left out: 1 duplicates, 1 unreadable" in answer.out
    assert "left out, damaged: a.txt" in answer.out
    assert command("prepare", config, "--json").json["counts"]["unreadable"] == 1
    assert command("prepare", config, "--json").json["splits"]["train"]["tokens"] == 1000


def test_doctor_shows_units(command: Command, api: SimpleNamespace) -> None:
    out = command("doctor").out
    for text in ("8 GB", "500 GFLOP/s", "missing: no GPU [found]", "usable"):
        assert text in out


def test_a_run_by_its_name(command: Command, api: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    command("runs", "show", "a")
    assert api.calls == [("show_run", (Path("runs/a"),), {})]


@pytest.mark.parametrize(
    "words",
    [
        ["c.yaml"],
        ["c.yaml", "--data", "text/*.txt", "--model", "15M", "--steps", "300", "--name", "mine"],
        ["c.yaml", "--data", "a # b: 'c'", "--steps", "learn", "--name", "1e3", "--model", "./dir: x"],
        ["my first: file.yaml"],
        ["....yaml"],
    ],
)
def test_init_writes_what_loads(words: list[str], command: Command) -> None:
    answer = command("init", *words, "--json")
    assert answer.json == {"path": words[0]}, answer.err
    text = Path(words[0]).read_text()
    assert len(text.splitlines()) < 25
    for line in text.splitlines():
        assert "# " in line
        assert line.rpartition("# ")[2].strip()
    config = load_config(words[0])
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert config.data.source == flags.get("--data", "python-stdlib")
    if "--name" in flags:
        assert config.name == flags["--name"]
    again = command("init", words[0], "--json")
    assert (again.code, again.json["error"]["type"]) == (2, "RunError")
    assert Path(words[0]).read_text() == text


def test_init_asks_three_questions(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prompt(question: str, default: str, err: bool) -> str:
        asked.append(question)
        return {"What text": "books", "What size": "2M", "How far (": "55"}.get(question[:9], default)

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert command("init").code == 0
    config = load_config("tutti.yaml")
    assert len(asked) == 3
    assert (config.data.source, config.model.size, config.train.steps) == ("books", "2M", 55)


def test_init_refuses_bad_answers_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    answer = command("init", "x.yaml", "--steps", "many", "--name", "a b")
    assert answer.code == 2
    assert "train.steps" in answer.err
    assert "name" in answer.err
    assert command("init", "x.yaml", "--steps", "9" * 5000).code == 2
    assert command("init", "no/such/x.yaml").code == 2
    assert command("init", "x" * 300 + ".yaml").code == 2
    assert list(tmp_path.iterdir()) == []
