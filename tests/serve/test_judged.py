"""What a gateway decides by: when a version is worse, how many workers there should be, who gets the canary."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from tutti.config.service import ReleaseConfig, ScaleConfig
from tutti.core.errors import ConfigError, DataError
from tutti.serve.gateway.fleet import is_chosen
from tutti.serve.gateway.probe import read_probe
from tutti.serve.gateway.scale import Bounds, Moment, Scaler
from tutti.serve.gateway.tally import Tally
from tutti.serve.gateway.verdict import verdict

RULES = ReleaseConfig()


def tally(seconds: Sequence[float], failed: int = 0) -> Tally:
    made = Tally()
    for one in seconds:
        made.note(200, one)
    for _ in range(failed):
        made.note(500, 0.01)
    return made


def steady(count: int, middle: float) -> list[float]:
    dice = random.Random(0)
    return [middle * dice.uniform(0.8, 1.2) for _ in range(count)]


def test_errors_are_compared_with_those_before() -> None:
    good = tally(steady(100, 0.1))
    assert verdict(tally(steady(95, 0.1), failed=5), good, RULES) is None  # 5 %: borne
    assert "errors: 6.0%" in str(verdict(tally(steady(94, 0.1), failed=6), good, RULES))
    bad = tally(steady(90, 0.1), failed=10)
    assert verdict(tally(steady(90, 0.1), failed=10), bad, RULES) is None  # no worse than it was
    assert verdict(tally(steady(44, 0.1), failed=5), good, RULES) is None  # too early
    assert "errors" in str(verdict(tally(steady(45, 0.1), failed=5), None, RULES))


def test_what_the_client_did_wrong_says_nothing() -> None:
    new = tally(steady(100, 0.1))
    for _ in range(100):
        new.note(400, 0.001)
        new.note(429, 0.001)
    assert verdict(new, tally(steady(100, 0.1)), RULES) is None
    assert new.requests == 300 and len(new.times) == 90  # the first ten warm up


def test_latency_is_compared_by_percentiles() -> None:
    good = tally(steady(1000, 0.1))
    assert verdict(tally(steady(100, 0.14)), good, RULES) is None
    assert "latency: of its last 90 requests 95 %" in str(verdict(tally(steady(100, 0.2)), good, RULES))
    slow_tail = steady(970, 0.1) + steady(30, 0.5)
    random.Random(1).shuffle(slow_tail)
    assert "99 %" in str(verdict(tally(slow_tail), good, RULES))  # 95 % are as quick as ever
    assert (
        verdict(tally(steady(100, 0.004)), tally(steady(100, 0.001)), RULES) is None
    )  # 3 ms: nobody notices
    first_slow = [3.0] * 10 + steady(90, 0.1)
    assert verdict(tally(first_slow), good, RULES) is None


def test_a_worker_that_dies_counts_as_an_error() -> None:
    new = tally(steady(90, 0.1))
    for _ in range(10):
        new.note_repeated(0.1)
    assert "errors: 10.0%" in str(verdict(new, tally(steady(100, 0.1)), RULES))


def workers_after(
    scaler: Scaler, workers: int, moments: Sequence[Moment], late: Sequence[float] = ()
) -> list[int]:
    seen = []
    for moment in moments:
        workers = scaler.wanted(workers, moment, late)
        seen.append(workers)
    return seen


def test_workers_come_quickly_and_go_slowly() -> None:
    scaler = Scaler(Bounds(1, 3), ScaleConfig(up_seconds=5, down_seconds=60))
    crowd = [Moment(float(t), 1, 10) for t in range(1, 20)]
    seen = workers_after(scaler, 1, crowd)
    assert seen[:5] == [1] * 5 and seen[5] == 2 and max(seen) == 3 and seen[-1] == 3
    calm = workers_after(scaler, 3, [Moment(20.0 + t, 0, 0) for t in range(400)])
    assert calm[50] == 3 and calm[-1] == 1
    changes = [t for t in range(1, 400) if calm[t] != calm[t - 1]]
    assert len(changes) == 2 and changes[1] - changes[0] >= 60


def test_a_short_crowd_changes_nothing() -> None:
    scaler = Scaler(Bounds(1, 3), ScaleConfig(up_seconds=5))
    waves = [Moment(float(t), 1, 10 if t % 5 < 3 else 0) for t in range(1, 100)]
    assert set(workers_after(scaler, 1, waves)) == {1}


def test_workers_that_are_busy_stay() -> None:
    scaler = Scaler(Bounds(1, 3), ScaleConfig(down_seconds=30))
    busy = [Moment(float(t), 2, 0) for t in range(1, 300)]
    assert set(workers_after(scaler, 2, busy)) == {2}


def test_late_answers_bring_workers_too() -> None:
    rules = ScaleConfig(latency_seconds=0.5, up_seconds=5)
    quiet = [Moment(float(t), 1, 0) for t in range(1, 12)]
    assert workers_after(Scaler(Bounds(1, 2), rules), 1, quiet, [1.0] * 50)[-1] == 2
    assert workers_after(Scaler(Bounds(1, 2), rules), 1, quiet, [0.1] * 50)[-1] == 1


def test_late_answers_of_long_ago_bring_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()
    for moment, seconds in [(0.0, 0.1)] * 10 + [(10.0, 3.0)] * 30 + [(100.0, 0.1)] * 2:
        clock = SimpleNamespace(monotonic=lambda moment=moment: moment)
        monkeypatch.setattr(sys.modules[Tally.__module__], "time", clock)
        tally.note(200, seconds)
    assert len(tally.times) == 32
    assert tally.times_since(5.0) == tally.times
    assert tally.times_since(40.0) == [0.1, 0.1]


def test_bounds_are_read() -> None:
    assert Bounds.read("2") == Bounds(2, 2) and Bounds.read("2:6") == Bounds(2, 6)
    for wrong in ("0", "3:2", "a", "1:2:3", "-1", ""):
        with pytest.raises(ConfigError, match="processes"):
            Bounds.read(wrong)


def test_a_canary_gets_its_share_and_the_same_request_again() -> None:
    names = [f"request-{number}" for number in range(20_000)]
    chosen = [is_chosen(name, 10) for name in names]
    # Binomial: 2,000 expected, standard deviation 42.
    assert abs(sum(chosen) - 2000) < 5 * 42.5
    assert [is_chosen(name, 10) for name in names] == chosen
    assert not any(is_chosen(name, 0) for name in names) and all(is_chosen(name, 100) for name in names)
    assert all(is_chosen(name, 50) for name, one in zip(names, chosen, strict=True) if one)


def test_a_probe_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "probe.jsonl"
    file.write_text(json.dumps({"input": "lost", "expected": "card"}) + "\n\n")
    (question,) = read_probe(file)
    assert question.asked == {"input": "lost"} and question.expected == "card"
    for text, words in [
        ("", "no questions"),
        ('{"input": "x"}\n', "line 1: there is no 'expected'"),
        ('{"input": "x", "expected": 1}\nno\n', "line 2: it is no JSON"),
        ('{"expected": 1}\n', "input or prompt or messages"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_probe(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_probe(tmp_path / "none")
