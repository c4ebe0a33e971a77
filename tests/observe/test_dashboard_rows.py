"""Rows of a chart: every step is in one, and skew, speed and bytes are what can be worked out by hand."""

import json
from pathlib import Path

import pytest

from tests.observe.synthetic import Recorder, lively_run
from tutti.observe.dashboard.rows import MOST_ROWS, Rows, columns_of
from tutti.observe.dashboard.runs import Runs
from tutti.observe.growing import GrowingHistory
from tutti.observe.history import read_history
from tutti.observe.skew import over_the_others, ranks_of


def rows_of(run: Path) -> Rows:
    growing, rows = GrowingHistory(run), Rows()
    growing.refresh()
    rows.update(growing)
    return rows


def test_a_long_run_has_few_rows_and_loses_nothing(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0, peak_flops=None)
    r.steps(0, range(1, 2 * MOST_ROWS + 2), sent=10)  # two steps a row do not suffice
    rows = rows_of(r.run)
    assert rows.width == 4 and len(rows.rows) == 501
    assert sum(row["steps"] for row in rows.rows) == 2001
    assert rows.rows[-1]["step"] == 2001 and rows.rows[-1]["tokens"] == 2001 * 1000
    # Steps 1 to 4: the loss of step n is 5/√n.
    losses = [5, 5 / 2**0.5, 5 / 3**0.5, 2.5]
    first = rows.rows[0]
    assert first["loss"] == pytest.approx(sum(losses) / 4)
    assert (first["loss_low"], first["loss_high"]) == (2.5, 5)
    assert first["tokens_per_second"] == pytest.approx(1000)
    assert first["bytes"] == pytest.approx(20)  # ten from each of two ranks, a step
    assert "mfu" not in first  # the peak of the machine is not known
    columns = columns_of(rows.rows)
    assert all(len(column) == 501 for column in columns.values())


def test_what_is_no_number_is_not_known(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0)
    r.steps(0, [1, 2], learning_rate="nan", gradient_norm="inf", wait_data_seconds="nan")
    columns = columns_of(rows_of(r.run).rows)
    assert columns["learning_rate"] == [None, None] and columns["step"] == [1, 2]
    json.dumps(columns, allow_nan=False)


def test_what_a_step_is_made_of(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0)
    parts = {
        "forward_seconds": 0.2,
        "backward_seconds": 0.3,
        "exchange_seconds": 0.05,
        "optimizer_seconds": 0.1,
    }
    r.steps(0, [1], **parts)
    r.at(1.5, "checkpoint", step=1, blocked_seconds=0.04)
    (row,) = rows_of(r.run).rows
    stack = {name.removesuffix("_seconds"): row[name] for name in row if name.endswith("_seconds")}
    want = {"data": 0.1, "forward": 0.2, "backward": 0.3, "sync": 0.25, "optimizer": 0.1, "rest": 0.05}
    assert stack == pytest.approx(want | {"checkpoint": 0.04})
    # 30e6 operations a token, 1000 tokens a second, of 100e9 that are possible.
    assert row["mfu"] == pytest.approx(0.3)


def test_skew_of_three_ranks(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0, world_size=3)
    for step in (1, 2):
        for rank, alone in enumerate((0.2, 0.3, 0.4 * step)):
            spoken = {"loss": 2.0, "tokens": 10, "seconds": 1.0} if rank == 0 else {}
            r.at(step, "step", rank, step=step, alone_seconds=alone, **spoken)
    rows = rows_of(r.run).rows
    # Step 1: the slowest works 0.4 s, the others' median is 0.25 s. Step 2: 0.8 s.
    assert [row["skew"] for row in rows] == pytest.approx([0.4 / 0.25 - 1, 0.8 / 0.25 - 1])
    found = {rank["rank"]: rank for rank in ranks_of(read_history(r.run), {2: {"phase": "data", "step": 2}})}
    assert [found[rank]["seconds"] for rank in range(3)] == pytest.approx([0.2, 0.3, 0.6])
    assert [found[rank]["of_others"] for rank in range(3)] == pytest.approx(
        [0.2 / 0.45, 0.3 / 0.4, 0.6 / 0.25]
    )
    assert found[2]["phase"] == "data" and found[0]["phase"] is None
    assert over_the_others({0: 1.0}) == {}


def test_only_what_changed_is_sent(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0)
    now = r.steps(0, range(1, 11))
    growing, rows = GrowingHistory(r.run), Rows()
    growing.refresh()
    rows.update(growing)
    seen = rows.revision
    rows.update(growing)
    assert rows.revision == seen and rows.changed_since(seen) == 10
    r.steps(now, [11, 12])
    growing.refresh()
    rows.update(growing)
    assert rows.changed_since(seen) == 10 and len(rows.rows) == 12
    r.at(now + 5, "checkpoint", step=3, blocked_seconds=0.5)  # told late
    growing.refresh()
    rows.update(growing)
    assert rows.rows[2]["checkpoint_seconds"] == 0.5 and rows.changed_since(seen) == 0


def test_loss_that_is_no_number_is_counted_and_not_drawn(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0)
    r.steps(0, [1], loss="nan", gradient_norm="inf")
    (row,) = rows_of(r.run).rows
    assert "loss" not in row and "gradient_norm" not in row and row["not_finite"] == 1


def test_runs_groups_and_trials_are_found_and_read_at_a_glance(tmp_path: Path) -> None:
    lively_run(tmp_path / "lively")
    for place in ("team/groups/0", "team/groups/1", "find-search/trials/3"):
        r = Recorder(tmp_path / place)
        r.started(5)
        r.steps(5, range(1, 21))
    (tmp_path / "team" / "config.yaml").write_text("name: team\n")
    (tmp_path / "no-run").mkdir()
    found = Runs([tmp_path]).look()
    runs = {run["name"]: run for run in found["runs"]}
    assert set(runs) == {"lively", "team/groups/0", "team/groups/1", "find-search/trials/3"}
    assert runs["lively"]["state"] == "finished" and runs["lively"]["step"] == 1000
    assert runs["lively"]["validation_loss"] == read_history(tmp_path / "lively").validations[-1]["loss"]
    assert runs["team/groups/0"]["state"] == "interrupted" and runs["team/groups/0"]["step"] == 20
    assert list(Runs([tmp_path / "lively"]).find()) == ["lively"]
    assert Runs([tmp_path / "nothing"]).look()["runs"] == []
