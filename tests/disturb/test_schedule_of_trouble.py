"""Lines of trouble: what they say, how they are refused, and that draws follow from the seed alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tutti.config import Config
from tutti.core.errors import ConfigError
from tutti.disturb import Disturbance, draw, load_schedule, read_line, read_schedule
from tutti.disturb.trouble import Trouble


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("kill", "30s@2", (30.0, False, 0.0, 1.0, 2)),
        ("kill", "every:1.5m", (90.0, True, 0.0, 1.0, None)),
        ("stop", "20s+500ms@0", (20.0, False, 0.5, 1.0, 0)),
        ("slow", "every:2h+30s:25%@10", (7200.0, True, 30.0, 0.25, 10)),
        ("cut", "0s+10s", (0.0, False, 10.0, 1.0, None)),
    ],
)
def test_a_line_says(kind: str, text: str, expected: tuple[object, ...]) -> None:
    line = read_line(kind, text)
    assert (line.at, line.repeats, line.seconds, line.speed, line.replica) == expected


@pytest.mark.parametrize(
    ("kind", "text", "part"),
    [
        ("kill", "-5s", "never below 0"),
        ("kill", "30", "times are"),
        ("kill", "30s+5s", "no length"),
        ("kill", "30s@x", "cannot be understood"),
        ("kill", "30s@-1", "cannot be understood"),
        ("kill", "every:0s", "without end"),
        ("stop", "30s", "needs a length"),
        ("stop", "30s+0s", "needs a length"),
        ("slow", "30s+5s", "needs a speed"),
        ("slow", "30s+5s:100%", "between 1% and 99%"),
        ("slow", "30s+5s:0%", "between 1% and 99%"),
        ("cut", "30s+5s:50%", "only --slow"),
        ("burn", "30s", "there is no disturbance 'burn'"),
        ("kill", "", "cannot be understood"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_line(kind, text)
    assert part in str(refusal.value) and refusal.value.hint


def test_nothing_to_disturb_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is to be disturbed"):
        read_schedule({"kill": []})


def first(lines: dict[str, list[str]], seed: int, number: int = 200) -> list[Disturbance]:
    return list(itertools.islice(draw(read_schedule(lines), seed, 3), number))


def test_draws_follow_from_the_seed() -> None:
    lines = {"kill": ["every:60s", "30s@2"], "stop": ["every:20s+5s"]}
    again, other = first(lines, 1), first(lines, 2)
    assert first(lines, 1) == again != other
    assert [d.at for d in again] == sorted(d.at for d in again)
    assert Disturbance(30.0, "kill", 2) in again
    # Another line draws from dice of its own.
    alone = first({"stop": ["every:20s+5s"]}, 1, 100)
    assert [d for d in again if d.kind == "stop"][:100] == alone


def test_equal_lines_draw_apart() -> None:
    both = first({"kill": ["every:10s", "every:10s"]}, 0)
    assert len({d.at for d in both}) == len(both)


def test_rates_are_those_of_a_poisson_process() -> None:
    """Gaps are exponential: mean and standard deviation are both the rate's inverse; victims are equally likely."""
    drawn = first({"kill": ["every:60s"]}, 0, 20_000)
    gaps = np.diff([0.0, *(d.at for d in drawn)])
    assert abs(gaps.mean() / 60 - 1) < 0.03 and abs(gaps.std() / 60 - 1) < 0.03
    counts = np.bincount([d.replica for d in drawn])
    assert np.all(np.abs(counts / len(drawn) - 1 / 3) < 0.02)


def test_a_file_holds_the_same_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("kill: every:60s\nstop: [20s+5s@1, 40s+1s]\n")
    assert load_schedule(path) == {"kill": ["every:60s"], "stop": ["20s+5s@1", "40s+1s"]}


@pytest.mark.parametrize("content", ["- kill", "kill: 5", "burn: 30s@1", "kill: [", "kill: {a: b}"])
def test_a_file_that_says_something_else_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refusal:
        read_schedule(load_schedule(path))
    assert str(path) in str(refusal.value)


def test_a_replica_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no replica 2"):
        Trouble(read_schedule({"kill": ["30s@2"]})).check(Config(replicas=2))


def test_one_replica_has_nobody_to_be_cut_off_from() -> None:
    with pytest.raises(ConfigError, match="nobody to be cut off from"):
        Trouble(read_schedule({"cut": ["30s+5s"]})).check(Config(replicas=1))
