"""Runs of several seeds beside each other: the test is Welch's, by hand; the page holds what was compared."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tutti.cli import run as tutti_command
from tutti.core import RunError
from tutti.observe import compare_runs
from tutti.observe.arms import arms_of, differences


def written(place: Path, name: str, losses: list[float], **config: Any) -> Path:
    """A run whose training and validation losses were `losses`."""
    run = place / name
    (run / "events").mkdir(parents=True)
    lines = [f"{key}: {value}" for key, value in config.items() if key != "train"]
    train = [f"  {key}: {value}" for key, value in config.get("train", {}).items()]
    (run / "config.yaml").write_text("\n".join([f"name: {name}", *lines, "train:", *train]) + "\n")
    events: list[dict[str, Any]] = [
        {"kind": "run_started", "time": 1.0, "rank": 0, "steps": 100 * len(losses)}
    ]
    for number, loss in enumerate(losses, 1):
        for step in range(100 * number - 99, 100 * number + 1):
            events.append({
                "kind": "step", "time": 1.0 + step, "rank": 0, "step": step, "loss_sum": loss * 10, "targets": 10,
                "tokens": 10, "seconds": 1.0, "loss": loss,
            })  # fmt: skip
        events.append(
            {"kind": "validation", "time": 1.5 + 100 * number, "rank": 0, "step": 100 * number, "loss": loss}
        )
    (run / "events" / "rank-0.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    before = [
        written(
            tmp_path,
            f"base-{seed}",
            [3.0, 2.0 + off],
            train={"seed": seed, "learning_rate": 0.001},
            alerts=f"{{every: {seed}}}",  # who is told makes no other arm
        )
        for seed, off in enumerate((0.01, -0.02, 0.03))
    ]
    after = [
        written(tmp_path, f"fast-{seed}", [2.9, 1.9 + off], train={"seed": seed, "learning_rate": 0.002})
        for seed, off in enumerate((0.02, -0.01, 0.0, -0.03))
    ]
    return before + after


def test_seeds_are_an_arm_and_a_difference_is_welchs(runs: list[Path]) -> None:
    compared = compare_runs(runs)
    assert [arm["name"] for arm in compared["arms"]] == ["base (3 seeds)", "fast (4 seeds)"]
    (found,) = [one for one in compared["differences"] if one["figure"] == "best_validation_loss"]
    # By hand: means 2.0066667 and 1.895, variances of the means 0.0006333/3 and 0.0004333/4.
    first, second = [2.01, 1.98, 2.03], [1.92, 1.89, 1.90, 1.87]
    means = [sum(some) / len(some) for some in (first, second)]
    errors = [
        sum((value - mean) ** 2 for value in some) / (len(some) - 1) / len(some)
        for some, mean in zip((first, second), means, strict=True)
    ]
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 3)
    t = (means[1] - means[0]) / math.sqrt(sum(errors))
    assert found["difference"] == pytest.approx(means[1] - means[0])
    assert found["p"] == pytest.approx(two_sided(t, freedom), rel=1e-3)
    assert found["interval"][0] < found["difference"] < found["interval"][1] < 0
    assert "more than chance" in found["sentence"]
    assert compared["config"]["train.learning_rate"] == [0.001] * 3 + [0.002] * 4


def two_sided(t: float, freedom: float) -> float:
    """2 P(T > |t|) of Student's t, by adding up its density (Simpson)."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    low, steps = abs(t), 200_000
    width = (2000.0 - low) / steps

    def density(x: float) -> float:
        return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    inner = sum((4 if k % 2 else 2) * density(low + k * width) for k in range(1, steps))
    return 2 * width / 3 * (density(low) + inner + density(2000.0))


def test_what_cannot_be_told_is_not_told(tmp_path: Path) -> None:
    alone = [
        written(tmp_path, name, [2.0], train={"learning_rate": rate}) for name, rate in (("a", 1), ("b", 2))
    ]
    (one,) = compare_runs(alone)["differences"]
    assert one["p"] is None and "cannot be told (one run" in one["sentence"]
    same = arms_of(["a", "b", "c", "d"], [{"x": 1}, {"x": 1}, {"x": 2}, {"x": 2}])
    (alike,) = differences(same, {"loss": [1.0, 1.0, 2.0, 2.0]})
    assert alike.p is None and "alike" in alike.sentence
    assert differences(same, {"loss": [1.0, None, 2.0, 2.0]}) == []
    assert len(arms_of(["a", "b"], [{"train.seed": 1, "x": 1}, {"train.seed": 2, "x": 1}])) == 1


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.pictures, self.fetched, self._in = (
            list[str](),
            list[dict[str, Any]](),
            list[str](),
            False,
        )

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self._in = tag in ("td", "th", "li")
        self.cells += [""] if self._in else []
        self.pictures += [given] if tag == "img" else []
        self.fetched += [given[key] for key in ("src", "href") if key in given]

    def handle_data(self, data: str) -> None:
        if self._in and self.cells:
            self.cells[-1] += data


def test_a_picture_and_a_page(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png, html = tmp_path / "curves.png", tmp_path / "both.html"
    words = ["runs", "compare", *map(str, runs), "--png", str(png), "--html", str(html)]
    assert tutti_command(words) == 0
    said = capsys.readouterr()
    assert "more than chance" in said.out and str(png) in said.err
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = Page()
    page.feed(html.read_text())
    assert page.pictures[0]["alt"] and all(one.startswith("data:image/png;base64,") for one in page.fetched)
    assert "train.learning_rate" in page.cells and "0.002" in page.cells
    assert any("more than chance" in cell for cell in page.cells)


def test_there_must_be_a_place_for_files(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no directory"):
        compare_runs(runs, png=tmp_path / "no" / "curves.png")
