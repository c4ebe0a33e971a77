"""`tutti` as a person types it, on a small text: in this process (imports cost seconds), or as a process of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutti.core import read_events

WORDS = (
    *("the", "model", "learns", "to", "predict", "words", "while", "two", "workers"),
    *("share", "a", "batch", "and", "agree", "before", "they", "step"),
)


def write_text(path: Path, lines: int = 400, seed: int = 0) -> Path:
    """About 28 KB of words in an order that only its seed knows."""
    choose = random.Random(seed)
    path.write_text("\n".join(" ".join(choose.choices(WORDS, k=12)) for _ in range(lines)) + "\n")
    return path


def write_config(directory: Path, **changes: Any) -> Path:
    """`c.yaml` and its text in `directory`: a model that trains in seconds. `changes` replace whole sections."""
    if not (directory / "text.txt").exists():
        write_text(directory / "text.txt")
    content = {
        "name": "r",
        "data": {"source": "text.txt", "sequence": 32, "cache": "cache", "tokenizer": "characters"},
        "model": "60K",
        "replicas": 2,
        "train": {"steps": 120, "batch": 8, "precision": "fp32", "learning_rate": 0.003},
        "evaluate": {"every": 60, "samples": 8, "prompts": ["the model"], "new_tokens": 8},
        "checkpoint": {"every": 20},
    }
    path = directory / "c.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@dataclass
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Everything that stood on the terminal."""
        return self.out + self.err

    @property
    def json(self) -> Any:
        """stdout as the one JSON object that it must be."""
        return json.loads(self.out)


class Here:
    """Runs `tutti` in this process and the current directory."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: str) -> Answer:
        from tutti.cli import run

        self._capture.readouterr()
        code = run([str(word) for word in words])
        sys.stdout.flush()
        sys.stderr.flush()
        captured = self._capture.readouterr()
        return Answer(code, captured.out, captured.err)


def refused(answer: Answer, *parts: str) -> None:
    """One clear message at the end of stderr (progress may stand before it), exit code 2, no traceback."""
    assert answer.code == 2, answer.said
    before, word, message = f"\n{answer.err}".partition("\nerror: ")
    assert word and "\nerror" not in before.lower(), answer.said
    assert 1 <= len(message.strip().splitlines()) <= 4, answer.said
    assert "Traceback" not in answer.said and "defect" not in answer.said
    for part in parts:
        assert part in message, answer.err


class Command:
    """`python -m …` as a process group of its own, with its output in files, as a shell would start it."""

    def __init__(self, directory: Path, *words: str, module: str = "tutti", run: str = "r") -> None:
        self.run = directory / "runs" / run
        self.began = time.time()
        self._out, self._err = directory / f"out-{self.began}", directory / f"err-{self.began}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=directory,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def until_step(self, step: int) -> None:
        """Wait until rank 0 has finished `step`."""
        wait_for_step(self.run, step, self.began, lambda: self.process.poll() is None)

    def worker_pids(self) -> list[int]:
        return [
            worker_pid(self.run, rank) for rank in range(len(list((self.run / "live").glob("rank-*.json"))))
        ]

    def signal_group(self, number: signal.Signals) -> None:
        """What a terminal does on Ctrl-C."""
        os.killpg(self.process.pid, number)

    def end(self, seconds: float = 60) -> Answer:
        code = self.process.wait(timeout=seconds)
        return Answer(code, self.out, self.err)

    def kill(self) -> None:
        """Leave nothing behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)


@contextmanager
def started(directory: Path, *words: str, **options: Any) -> Iterator[Command]:
    """A command that is gone when the test is over."""
    command = Command(directory, *words, **options)
    try:
        yield command
    finally:
        command.kill()


def worker_pid(run: Path, rank: int) -> int:
    return int(json.loads((run / "live" / f"rank-{rank}.json").read_text())["pid"])


def is_alive(pid: int) -> bool:
    """Whether the process runs (one that is dead but not yet waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_step(
    run: Path, step: int, since: float, goes_on: Callable[[], bool] = lambda: True, seconds: float = 120
) -> None:
    """Until rank 0 has finished `step` after Unix time `since`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for event in read_events(run, "step") if (run / "events").is_dir() else ():
            if event["time"] >= since and event["rank"] == 0 and event["step"] >= step:
                return
        assert goes_on(), f"the run ended before step {step}"
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached in {seconds} s")


@contextmanager
def at_step(run: Path, step: int, action: Callable[[], Any], rank: int = 0) -> Iterator[None]:
    """While the block trains, do `action` once when rank 0 has finished `step`; its errors are the test's."""
    errors: list[BaseException] = []
    over = threading.Event()
    since = time.time()

    def watch() -> None:
        try:
            wait_for_step(run, step, since, lambda: not over.is_set())
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)
    if errors:
        raise errors[0]


def events_of(run: Path, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
    return [event for event in read_events(run, kind) if event["time"] >= since]


def losses_of(run: Path) -> dict[int, float]:
    """Step → training loss, the last word on each step."""
    events = sorted((e for e in read_events(run, "step") if "loss" in e), key=lambda e: e["time"])
    return {event["step"]: event["loss"] for event in events}
