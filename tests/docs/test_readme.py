"""What the README says to type works as typed: its console, Python and YAML blocks are run.

Commands run in the order of the README, in a copy of `examples/` and `docs/`, by the same entry point as the
`tutti` command, in this process: torch is imported once. So that it takes seconds, runs are made tiny: a model of
100K, a few steps, and the documentation as text (the README's own figures come from `make demo`).

A comment `<!-- test: slow -->` above a block moves it to the slow tests. Not run: `make test`, which would call
itself, and `source`, which concerns only the reader's shell.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tutti import cli
from tutti.config import load_config, load_service

ROOT = Path(__file__).parents[2]
SMALL = {
    "model": "100K",
    "data.source": "docs",
    "data.sequence": "32",
    "data.cache": "cache",
    "train.steps": "4",
    "train.batch": "4",
    "checkpoint.every": "2",
    "evaluate.every": "2",
    "evaluate.samples": "4",
    "evaluate.new_tokens": "4",
}
#: The README's numbers of steps, small.
STEPS = {"300": "6", "60": "4"}
NOT_RUN = ("make test", "source ")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands in it, in which language, and the comment above it."""

    language: str
    text: str
    slow: bool

    @property
    def commands(self) -> list[str]:
        """Lines that a reader types, without comments."""
        lines = [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\s+# .*", "", line) for line in lines]


def blocks(page: Path) -> list[Block]:
    pattern = re.compile(r"(?:<!-- test: ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = pattern.findall(page.read_text(encoding="utf-8"))
    return [Block(language, text, mark == "slow") for mark, language, text in found]


README = blocks(ROOT / "README.md")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like a fresh checkout, as far as the README's commands look."""
    for name in ("examples", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made_small(words: Sequence[str]) -> list[str]:
    """A `train` command with everything that makes it tiny; what it says itself about other keys stays."""
    given = [word for word in words if "=" in word and not word.startswith("-")]
    mine = {key: value for key, _, value in (word.partition("=") for word in given)}
    if "train.steps" in mine:
        mine["train.steps"] = STEPS[mine["train.steps"]]
    kept = {key: value for key, value in mine.items() if key not in SMALL or key == "train.steps"}
    return [word for word in words if word not in given] + [f"{k}={v}" for k, v in (SMALL | kept).items()]


def make_demo() -> str:
    """What `make demo` runs after it has installed everything."""
    target = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    return target.strip().splitlines()[-1].strip().replace("$(BIN)/", "")


def run(command: str) -> None:
    """Run one command of the README, made small."""
    words = shlex.split(make_demo() if command == "make demo" else command)
    if words[0] == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", *made_small(words[1:])]
        done = subprocess.run(program, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert words[0] == "tutti", f"the README calls {words[0]}, which this test does not know"
    arguments = made_small(words[1:]) if words[1] == "train" else words[1:]
    assert cli.run(arguments) == 0, command


def wanted(slow: bool) -> list[str]:
    return [
        command
        for block in README
        if block.language == "console" and block.slow == slow
        for command in block.commands
        if not command.startswith(NOT_RUN)
    ]


def test_the_quick_commands_work_as_typed(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = wanted(slow=False)
    assert commands[0] == "make demo" and len(commands) > 4
    for command in commands:
        run(command)
    said = capfd.readouterr().out
    assert "class Queue:" in said and "bits_per_byte" in said

    run_directory = place / "runs" / "demo"
    table = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("## A run is a directory")[2]
        .partition("\n## ")[0]
    )
    names = re.findall(
        r"`([\w.]+)/?`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    )
    assert len(names) > 6
    assert all((run_directory / name).exists() for name in names), names

    opens = next(block for block in README if block.language == "python" and "from_pretrained" in block.text)
    exec(compile(opens.text, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_fit_of_the_readme_works_as_a_script(place: Path) -> None:
    text = next(block.text for block in README if block.language == "python" and "tutti.fit" in block.text)
    (place / "script.py").write_text(text)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "runs" / "fit" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_slow_commands_work_as_typed(place: Path) -> None:
    commands = wanted(slow=True)
    assert len(commands) > 4
    for command in commands:
        run(command)


def test_nothing_in_the_readme_is_of_a_kind_that_is_not_tested() -> None:
    assert {block.language for block in README} <= {"console", "python", "yaml", "text"}
    skipped = [c for b in README for c in b.commands if c.startswith(NOT_RUN)]
    assert set(skipped) == {"make test", "source .venv/bin/activate"}


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_in_the_documentation_is_good(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            file = tmp_path / "block.yaml"
            file.write_text(block.text, encoding="utf-8")
            load = load_service if block.text.startswith("# service.yaml") else load_config
            load(file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_options_in_the_documentation_exist(page: Path) -> None:
    import typer

    root = typer.main.get_command(cli.app)
    for block in blocks(page):
        for command in block.commands:
            words = shlex.split(command)
            if "tutti" not in words or command.startswith(("pip", "source")):
                continue
            here = root
            after = words[words.index("tutti") + 1 :]
            while after and after[0] in getattr(here, "commands", {}):
                here = here.commands[after.pop(0)]
            assert not hasattr(here, "commands"), f"no such verb: {command}"
            known = {option for parameter in here.params for option in parameter.opts}
            assert {word for word in after if word.startswith("--")} <= known, command
