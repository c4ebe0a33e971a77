"""A stand-in for `tutti.api`: the verbs are thin, so what they pass on and print is all there is to test."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tutti
from tutti.cli import run
from tutti.data.manifest import Counts, Skipped
from tutti.observe.resilience import resilience_figures


@dataclass
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON object that it must be."""
        return json.loads(self.out)


Command = Callable[..., Answer]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `tutti` with the given words in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: str) -> Answer:
        code = run(list(words))
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def in_process(command: Command, api: SimpleNamespace) -> Callable[[list[str]], tuple[int, str]]:
    """Runs `tutti` and returns the exit code and everything that it said."""

    def call(words: list[str]) -> tuple[int, str]:
        answer = command(*words)
        return answer.code, answer.out + answer.err

    return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Records every call in `calls`; the functions can be replaced."""
    fake: Any = ModuleType("tutti.api")
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    split = SimpleNamespace(documents=3, bytes=4000, tokens=1000)
    prepared = SimpleNamespace(
        directory=Path("cache/ab"),
        fingerprint="ab",
        vocabulary=512,
        splits={"train": split},
        choices=["data.vocabulary = 512: little text"],
        manifest=SimpleNamespace(steps=[]),
        counts=Counts(
            files=2,
            documents=3,
            empty=0,
            duplicates=1,
            in_validation=0,
            unreadable=1,
            skipped=(Skipped(name="a.txt", reason="damaged"),),
        ),
    )
    machine = {
        "system": "Linux",
        "cores": {"usable": 2, "physical": 4},
        "memory": {"total_bytes": 8_000_000_000, "limit": None},
        "devices": [],
        "matmul_flops": {"cpu": {"fp32": 1e11, "bf16": 5e11}},
        "missing": [{"what": "no GPU [found]", "how": "buy one"}],
    }
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "config.yaml").write_text("name: a\n")
    figures = resilience_figures(tmp_path / "nothing") | {"run": "a", "state": "finished"}
    answers = {
        "prepare": prepared,
        "profile": SimpleNamespace(report={"bottleneck": "data"}),
        "train": {"state": "finished", "steps": 3, "train_loss": float("nan")},
        "join": {"run": "a", "state": "finished", "replicas": [1], "step": 3},
        "chaos": figures,
        "chaos_report": figures,
        "evaluate": {"loss": 1.5, "bits_per_byte": 2.0, "targets": 10, "seconds": 0.1, "step": 3},
        "generate": ["def f", "class [bold]A"],
        "export": Path("runs/a/export"),
        "doctor": SimpleNamespace(to_dict=lambda: machine),
        "list_runs": [{"name": "a", "state": "finished"}, {"name": "b", "steps": 4}],
        "show_run": {"name": "a", "report": {"steps": 3}, "checkpoints": [{"step": 3}]},
        "compare_runs": {"figures": {"loss": {"a": 1.0, "b": 2.0}}, "settings": [{"key": "x", "a": 1}]},
    }

    def function(name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            print("noise of a library")
            return answers[name]

        return called

    for name in answers:
        setattr(fake, name, function(name))
    fake.calls, fake.answers = calls, answers
    monkeypatch.setitem(sys.modules, "tutti.api", fake)
    monkeypatch.setattr(tutti, "api", fake, raising=False)
    return fake
