"""What is read bit by bit is what is read whole."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.observe.synthetic import Recorder, lively_run
from tutti.observe import growing as growing_module
from tutti.observe.growing import GrowingHistory
from tutti.observe.history import History, read_history


def alike(one: History, other: History) -> bool:
    """All that charts are made of (NaN, which no run here has, would not be alike)."""
    return (
        one.steps == other.steps
        and one.validations == other.validations
        and one.alone == other.alone
        and sorted(one.counters) == sorted(other.counters)
        and {k: len(v) for k, v in one.other.items()} == {k: len(v) for k, v in other.other.items()}
    )


def pieces(run: Path, into: Path, number: int) -> list[dict[Path, bytes]]:
    """The files of `run` in `number` portions by time, as if they had been written so under `into`."""
    lines: list[tuple[float, Path, bytes]] = []
    for path in sorted((run / "events").glob("*.jsonl")):
        lines += [(json.loads(line)["time"], path, line) for line in path.read_bytes().splitlines(True)]
    lines.sort(key=lambda line: line[0])
    size = math.ceil(len(lines) / number)
    found = []
    for begin in range(0, len(lines), size):
        portion: dict[Path, bytes] = defaultdict(bytes)
        for _, path, line in lines[begin : begin + size]:
            portion[into / "events" / path.name] += line
        found.append(portion)
    return found


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_module, "_READING_SHARE", 1e9)  # anew at once


def grown_alike(whole: Path, part: Path, number: int) -> GrowingHistory:
    (part / "events").mkdir(parents=True)
    growing = GrowingHistory(part)
    for portion in pieces(whole, part, number):
        for path, lines in portion.items():
            with path.open("ab") as file:
                file.write(lines[:-7])  # the last line is in flight
            growing.refresh()
            with path.open("ab") as file:
                file.write(lines[-7:])
        growing.refresh()
        growing.refresh()
        assert alike(growing.history, read_history(part))
    return growing


def test_a_run_that_was_killed_and_went_on(tmp_path: Path) -> None:
    growing = grown_alike(lively_run(tmp_path / "whole"), tmp_path / "part", 30)
    assert growing.edition < 8  # it was read anew where something had been undone, and nowhere else
    assert growing.history.lost_steps == 39 and len(growing.history.steps) == 1000


def test_replicas_that_speak_for_themselves(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "whole")
    r.started(0.5, policy="diloco", transport="elastic")
    for step in range(1, 61):
        for rank in (0, 1):
            facts: dict[str, Any] = {"loss": 5 / step + rank, "tokens": 100 + rank, "seconds": 1 + rank}
            spent = {"wait_data_seconds": 0.1, "sync_seconds": 0.2, "alone_seconds": 0.5 + rank}
            r.at(step * (1 + 0.3 * rank), "step", rank, step=step, bytes_sent=step, **facts, **spent)
    growing = grown_alike(tmp_path / "whole", tmp_path / "part", 25)
    assert growing.edition == 1  # nothing was undone
    first = growing.history.steps[0]
    assert (first.tokens, first.seconds) == (201, 2.0)
    assert first.loss == pytest.approx((100 * 5 + 101 * 6) / 201)


def test_a_run_that_was_deleted_and_begun_again(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0)
    r.steps(0, range(1, 11))
    growing = GrowingHistory(r.run)
    growing.refresh()
    for path in (r.run / "events").iterdir():
        path.unlink()
    r.started(100)
    r.steps(100, range(1, 4))
    growing.refresh()
    assert [step.step for step in growing.history.steps] == [1, 2, 3]
