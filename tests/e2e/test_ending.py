"""What a person sees of a whole run on a terminal, and that what is printed there can be typed."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Here, events_of, write_config


def on_a_terminal(directory: Path, *words: str) -> tuple[int, str]:
    """Exit code, and everything that a terminal of 100 columns is sent, colours and cursor moves included."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tutti", *words],
        cwd=directory,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    return process.wait(timeout=30), seen.decode()


def lines_that_stay(seen: str) -> list[str]:
    """The screen's lines without escape codes and without the bar, which is drawn over itself."""
    bare = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
    return [line.strip() for line in re.split(r"[\r\n]+", bare) if line.strip() and "━" not in line]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 30 steps as a terminal saw it."""
    directory = tmp_path_factory.mktemp("shown")
    write_config(directory)
    code, seen = on_a_terminal(
        directory, "train", "c.yaml", "train.steps=30", "evaluate.every=15", "name=shown"
    )
    assert code == 0, seen
    return directory, seen


def test_the_screen_tells_the_run_once_and_in_order(shown: tuple[Path, str]) -> None:
    _, seen = shown
    lines = lines_that_stay(seen)
    order = [
        "chosen: ",
        "2 workers joined by allreduce",
        "rehearsed in",
        "step 15: validation loss",
        "the model writes:",
    ]
    order += ["finished at step 30", "run shown", "Validation bits per byte", "Loss curve", "tutti generate"]
    positions = [next((i for i, line in enumerate(lines) if part in line), -1) for part in order]
    assert -1 not in positions and positions == sorted(positions), list(zip(order, positions, strict=True))
    chosen = [line for line in lines if line.startswith("chosen: ")]
    assert len(chosen) == len(set(chosen)) >= 5
    assert sum("rehearsed" in line for line in lines) == 1
    assert "30/30" in seen and "tokens/s" in seen  # the bar
    assert "\x1b[?25h" in seen[-4000:]  # the cursor is there again


def test_no_library_speaks(shown: tuple[Path, str]) -> None:
    _, seen = shown
    for noise in ("Traceback", "Warning", "WARNING", "[W", "INFO", "gloo", "torch", "it/s]"):
        assert noise not in seen, noise


def test_the_table_says_what_the_report_says(shown: tuple[Path, str], tutti_here: Here) -> None:
    directory, seen = shown
    os.chdir(directory)  # monkeypatch of `tutti_here` takes it back
    report = tutti_here("runs", "show", "shown", "--json").json
    rows = {}
    for line in lines_that_stay(seen):
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) == 4:
            rows[cells[1]] = cells[2]
    assert rows["State"] == "finished"
    assert rows["Steps"] == "30 of 30"
    assert rows["Tokens"] == f"{30 * 8 * 32:,}" == f"{report['tokens']:,}"
    assert float(rows["Validation loss"].split()[0]) == pytest.approx(report["validation_loss"], abs=1e-4)
    bits = float(rows["Validation bits per byte"])
    assert bits == pytest.approx(events_of(Path("runs/shown"), "validation")[-1]["bits_per_byte"], abs=1e-4)
    assert "GFLOP/s" in rows["MFU"] and "against" in rows["MFU"]
    for name in ("Speed", "Goodput", "Wall time", "Peak memory", "Sent between replicas"):
        assert re.search(r"\d", rows[name]), name


def printed_commands(lines: list[str]) -> list[list[str]]:
    """The words behind `tutti` of every command that is offered."""
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if "tutti" in words and "#" in line:
            found.append(words[words.index("tutti") + 1 :])
    return found


@pytest.mark.parametrize("where", ["screen", "page"])
def test_every_printed_command_works(where: str, shown: tuple[Path, str], tutti_here: Here) -> None:
    directory, seen = shown
    os.chdir(directory)
    text = seen if where == "screen" else Path("runs/shown/report.md").read_text()
    commands = printed_commands(lines_that_stay(text))
    assert {words[0] for words in commands} == {"generate", "evaluate", "train"}
    for words in commands:
        answer = tutti_here(*words)
        assert answer.code == 0, (words, answer.said)
        if words[0] == "generate":
            assert answer.out.startswith("the model")
        if words[0] == "train":
            assert "went on from the checkpoint of step" in answer.out
            assert f"finished at step {words[-1].removeprefix('train.steps=')}" in answer.out
            assert "exists already" not in answer.said


def test_after_going_on_the_newest_weights_speak(shown: tuple[Path, str], tutti_here: Here) -> None:
    """An export that is older than the newest checkpoint must not answer for it."""
    os.chdir(shown[0])
    export = Path("runs/shown/export/config.json")
    text = tutti_here("generate", "shown", "the", "--temperature", "0", "--json").json
    os.utime(export, (0, 0))
    assert tutti_here("generate", "shown", "the", "--temperature", "0", "--json").json == text
    weights = export.with_name("model.safetensors")
    weights.write_bytes(b"broken")  # it would be read only if it were taken for new
    assert tutti_here("generate", "shown", "the", "--temperature", "0", "--json").json == text
