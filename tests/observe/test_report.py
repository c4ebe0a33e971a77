"""Figures, page and picture of synthetic runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from synthetic import START, Recorder, lively_run

from tutti.config import parse_config
from tutti.core import EventWriter, RunError
from tutti.observe import Commands, compare_runs, list_runs, show_run, summarise, write_report
from tutti.observe.figures import run_state
from tutti.observe.history import read_history


def finished_run(path: Path, **facts: object) -> Path:
    """100 steps of 1 s and 1000 tokens, two ranks that send 1 KB a step each."""
    r = Recorder(path)
    r.started(0.0, **facts)
    end = r.steps(0.0, range(1, 101))
    r.at(end, "validation", step=50, loss=1.0, bits_per_byte=0.5, targets=10, seconds=1.0)
    r.at(end + 2, "validation", step=100, loss=1.5, bits_per_byte=0.7, targets=10, seconds=1.0)
    r.at(end + 2, "memory", 0, peak_memory_bytes=100)
    r.at(end + 2, "memory", 1, peak_memory_bytes=300)
    r.at(end + 25, "finished", step=100, state="finished")
    return path


@pytest.mark.parametrize("length", ["train.steps=100", "train.epochs=2", ""])
def test_the_command_that_trains_on_can_be_typed(length: str) -> None:
    """Also where the file counts epochs."""
    said = Commands("tutti", f"tutti train mine.yaml {length}").resume_to(200)
    _, _, _, *words = shlex.split(said)
    for text in ("name: a", "train: {epochs: 2}"):
        config = parse_config(text, "mine.yaml", [word for word in words if word != "--resume"])
        assert (config.train.steps, config.train.epochs) == (200, None)


def test_figures_of_a_plain_run(tmp_path: Path) -> None:
    report = write_report(finished_run(tmp_path / "plain"))
    assert report == json.loads((tmp_path / "plain/report.json").read_text())
    assert report["name"] == "plain"
    assert report["state"] == "finished"
    assert report["steps"] == 100
    assert report["tokens"] == 100_000
    assert report["tokens_per_second"] == pytest.approx(1000)
    assert report["mfu"] == pytest.approx(30e6 * 1000 / 100e9)
    assert "measured on this machine" in report["mfu_basis"]
    assert report["wall_seconds"] == pytest.approx(125)
    assert report["goodput"] == pytest.approx(100 / 125)
    assert report["train_loss"] == pytest.approx(sum(5 / n**0.5 for n in range(81, 101)) / 20)
    assert report["train_loss_basis"] == "mean over the last 20 steps"
    assert report["validation_loss"] == 1.5
    assert report["best_validation_loss"] == 1.0
    assert report["validation_bits_per_byte"] == 0.7
    assert report["peak_memory_bytes"] == 300
    assert report["world_size"] == 2
    assert report["bytes_sent"] == 2 * 100 * 1000
    assert report["restarts"] == 0
    assert sum(report["time"].values()) == pytest.approx(report["wall_seconds"])


def test_pauses_cost_nothing_however_often_it_was_tried_to_go_on(tmp_path: Path) -> None:
    """Two nights, and between them a resume that was refused; the second day hangs for longer than its pause."""
    r = Recorder(tmp_path)
    r.at(0.0, "launched", -1, resume=False)
    r.started(1.0)
    r.steps(1.0, range(1, 51))
    r.at(51.0, "interrupted", step=50)
    r.at(40_000.0, "launched", -1, resume=True)
    r.at(40_001.0, "error", -1, type="ConfigError", message="no such key", user=True)
    r.at(80_000.0, "launched", -1, resume=True)
    r.started(80_001.0, resumed_from=50)
    now = r.steps(80_001.0, range(51, 101))
    r.at(now + 1800, "interrupted", step=100)  # nothing moved for half an hour
    r.at(now + 1810, "launched", -1, resume=True)
    r.started(now + 1811, resumed_from=100)
    r.at(now + 1812, "finished", step=100, state="finished")
    report = summarise(tmp_path)
    assert report["wall_seconds"] == pytest.approx(51 + 1 + 51 + 1800 + 2)
    assert report["goodput"] == pytest.approx(100 / (51 + 1 + 51 + 1800 + 2))


def test_a_run_faster_than_the_measured_peak_has_no_mfu(tmp_path: Path) -> None:
    report = write_report(finished_run(tmp_path / "busy", peak_flops=1e9))
    assert report["mfu"] is None and "busy at the start" in report["mfu_basis"]


def test_a_restart_supersedes_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    """60 steps, SIGKILL in mid-line, back to step 40 with four ranks."""
    r = Recorder(tmp_path)
    r.started(0.0)
    r.at(45.5, "validation", step=45, loss=9.0, bits_per_byte=9.0, targets=1, seconds=0.0)
    r.steps(0.0, range(1, 61))
    r.tear()
    r.tear(rank=1)
    r.at(65.0, "restart", -1, attempt=1, reason="rank 1 was ended by SIGKILL")
    r.started(70.0, attempt=1, resumed_from=40, world_size=4, peak_flops=200e9)
    r.steps(70.0, range(41, 101), loss=1.0, sent=3000)
    r.at(130.0, "finished", step=100, state="finished")
    report = summarise(tmp_path)
    assert report["steps"] == 100
    assert report["tokens"] == 100_000
    assert report["restarts"] == 1
    assert report["steps_repeated"] == 20
    assert report["time"]["repeated after a restart"] == pytest.approx(20)
    assert report["wall_seconds"] == pytest.approx(130)
    assert report["goodput"] == pytest.approx(100 / 130)
    assert report["train_loss"] == 1.0
    assert report["validation_loss"] is None  # that of step 45 belongs to the superseded attempt
    assert report["bytes_sent"] == 2 * (60 * 1000 + 60 * 3000)
    assert report["mfu"] == pytest.approx(30e6 * 100_000 / (40 * 100e9 + 60 * 200e9))
    assert [s.loss for s in read_history(tmp_path).steps][40:] == [1.0] * 60


def test_a_counter_that_starts_higher_than_it_ended_is_still_a_new_process(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    r.started(0.0)
    r.steps(0.0, [1], sent=10)
    r.at(1.5, "restart", -1, attempt=1, reason="killed")
    r.started(2.0, attempt=1, resumed_from=1)
    r.steps(2.0, [2], sent=500)
    assert summarise(tmp_path)["bytes_sent"] == 2 * (10 + 500)


def test_the_time_between_two_commands_is_not_the_runs(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    r.started(0.0)
    r.steps(0.0, range(1, 11))
    r.at(10.0, "interrupted", step=10)
    r.at(9_999.0, "rehearsal", what="write", seconds=0.1)
    r.started(10_000.0, resumed_from=10)
    r.steps(10_000.0, range(11, 21))
    report = summarise(tmp_path)
    assert report["wall_seconds"] == pytest.approx(21)
    assert report["restarts"] == 0 and report["steps_repeated"] == 0


def test_nor_is_it_that_of_a_run_of_groups(tmp_path: Path) -> None:
    Recorder(tmp_path)
    for group, seconds in ((0, 8.0), (1, 10.0)):
        r = Recorder(tmp_path / "groups" / str(group))
        r.started(0.0)
        r.steps(0.0, [1, 2], seconds=seconds / 2)
        r.at(seconds, "interrupted", step=2)
        r.started(10_000.0, resumed_from=2)
        r.steps(10_000.0, [3, 4], seconds=seconds / 2)
    assert summarise(tmp_path)["wall_seconds"] == pytest.approx(20.0)


def test_replicas_of_an_asynchronous_run_speak_for_themselves(tmp_path: Path) -> None:
    """Rounds of 2. Rank 0 dies after step 7, so that step is lost; it heals at 8 and does 9 and 10."""
    r = Recorder(tmp_path)
    for rank in (0, 1):
        r.at(
            0.0 + rank / 10, "run_started", rank, policy="diloco", attempt=0, world_size=2, resumed_from=None
        )
    fields = {"tokens": 500, "seconds": 1.0, "wait_data_seconds": 0.0, "sync_seconds": 0.0}
    for step in range(1, 11):
        r.at(float(step), "step", 1, step=step, loss=2.0, bytes_sent=10 * step, **fields)
        if step != 8:
            sent = step if step < 8 else step - 8
            r.at(float(step), "step", 0, step=step, loss=4.0, bytes_sent=sent, **fields)
            if step % 2 == 0:
                r.at(step + 0.1, "membership", 0, step=step, replicas=[0, 1])
        if step == 7:
            r.at(7.5, "restart", -1, attempt=1, reason="replica 0: killed", of_replica=0)
            r.at(8.2, "run_started", 0, policy="diloco", attempt=1, world_size=2, resumed_from=4)
            r.at(8.3, "healed", 0, step=8)
            r.at(8.3, "membership", 0, step=8, replicas=[0, 1])
    r.at(11.0, "finished", 0, step=10, state="finished")
    report = write_report(tmp_path)
    assert report["steps"] == 10
    assert report["tokens"] == 8 * 1000 + 2 * 500
    assert report["steps_repeated"] == 1
    assert report["time"]["repeated after a restart"] == pytest.approx(1.0 / 2)
    assert report["restarts"] == 1
    assert report["train_loss"] == pytest.approx((8 * 3.0 + 2 * 2.0) / 10)
    assert report["bytes_sent"] == 100 + 7 + 2  # the survivor's counter went on
    page = (tmp_path / "report.md").read_text()
    assert page.count("train together") == 1 and "replica 0 was healed by its peers at step 8" in page


def test_a_later_command_with_fewer_replicas_supersedes_all_of_them(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    fields = {"tokens": 500, "seconds": 1.0}
    for rank in (0, 1):
        r.at(0.0, "run_started", rank, policy="diloco", attempt=0, world_size=2, resumed_from=None)
        for step in range(1, 5):
            r.at(float(step), "step", rank, step=step, loss=2.0, **fields)
    r.at(100.0, "run_started", 0, policy="diloco", attempt=0, world_size=1, resumed_from=2)
    for step in range(3, 7):
        r.at(98.0 + step, "step", 0, step=step, loss=1.0, **fields)
    report = summarise(tmp_path)
    assert report["tokens"] == 2 * 1000 + 4 * 500
    assert report["steps_repeated"] == 2 and report["restarts"] == 0
    assert report["wall_seconds"] == pytest.approx(4 + 4)


@pytest.mark.parametrize(
    ("kind", "fields", "state"),
    [
        ("finished", {"step": 3, "state": "finished"}, "finished"),
        ("interrupted", {"step": 3}, "interrupted"),
        ("finished", {"step": 3, "state": "interrupted"}, "interrupted"),
        ("error", {"step": 3, "type": "ValueError", "message": "x"}, "failed"),
        ("gave_up", {"reason": "worker 0 was killed by SIGKILL"}, "failed"),
        ("warning", {"message": "x"}, "interrupted"),  # killed whole, long ago
    ],
)
def test_states(tmp_path: Path, kind: str, fields: dict[str, object], state: str) -> None:
    r = Recorder(tmp_path)
    r.started(0.0)
    r.steps(0.0, range(1, 4))
    r.at(4.0, kind, **fields)
    history = read_history(tmp_path)
    assert run_state(tmp_path, history) == state
    if kind == "warning":
        assert run_state(tmp_path, history, now=START + 10) == "running"
    if kind == "error":  # the launcher answers it with a restart
        r.at(5.0, "restart", -1, attempt=1, reason="rank 0 failed")
        assert run_state(tmp_path, read_history(tmp_path), now=START + 10) == "running"


def test_who_comes_back_too_late_does_not_take_up_the_run_again(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    for rank in (0, 1):
        r.at(0.0, "run_started", rank, transport="elastic", attempt=0, world_size=2, resumed_from=None)
    r.steps(0.0, range(1, 4))
    r.at(3.0, "restart", -1, attempt=1, reason="replica 1: killed", of_replica=1)
    r.at(4.0, "finished", step=3, state="finished")
    r.at(5.0, "run_started", 1, transport="elastic", attempt=1, world_size=2, resumed_from=2)
    assert run_state(tmp_path, read_history(tmp_path), now=START + 6) == "finished"


def test_nan_is_no_figure(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    r.started(0.0)
    r.steps(0.0, range(1, 4), loss="nan")
    r.at(4.0, "validation", step=3, loss="inf", bits_per_byte="nan", targets=1, seconds=0.1)
    report = write_report(tmp_path)
    assert report["steps"] == 3
    assert report["train_loss"] is None and report["validation_loss"] is None


def test_a_run_that_died_before_its_first_step_has_a_report(tmp_path: Path) -> None:
    Recorder(tmp_path)
    report = write_report(tmp_path)
    assert report["state"] == "interrupted"
    assert report["steps"] == 0 and report["tokens_per_second"] is None
    assert not (tmp_path / "loss.png").exists()
    assert "loss.png" not in (tmp_path / "report.md").read_text()


def test_events_of_the_real_writer_are_read(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events", 0)
    writer.write("run_started", attempt=0, steps=1, world_size=1)
    writer.write("step", step=1, loss=float("nan"), tokens=5, seconds=0.5)
    writer.close()
    assert summarise(tmp_path)["tokens"] == 5


def test_the_page_tells_the_story(tmp_path: Path) -> None:
    run = lively_run(tmp_path / "demo")
    write_report(run)
    page = (run / "report.md").read_text()
    for part in (
        "A model of 5M parameters was trained on `python-stdlib` for 8.19M tokens (1,000 steps), on 2",
        "![Loss over steps](loss.png)",
        "train.precision = fp32: nothing smaller",
        "def read_csv(path",
        "````text\nimport os",  # the model wrote a fence itself
        "rank 1 was ended by SIGKILL",
        "it was at `tutti/train/loop.py:120 run: batch = next(feed)`",
        "39 steps had to be done again",
        "| waiting for data |",
        "tutti generate demo",
    ):
        assert part in page.replace(f"{tmp_path.name}/", "")
    picture = (run / "loss.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (900, 500)


def test_runs_are_listed_shown_and_compared(tmp_path: Path) -> None:
    for index, name in enumerate(("first", "second")):
        run = finished_run(tmp_path / name)
        (run / "config.yaml").write_text(f"name: {name}\ntrain:\n  steps: 100\n  seed: {index}\n")
    write_report(tmp_path / "first")
    (tmp_path / "no-run").mkdir()
    assert {row["name"] for row in list_runs(tmp_path)} == {"first", "second"}
    assert list_runs(tmp_path / "missing") == []
    assert show_run(tmp_path / "second")["config"]["train"]["seed"] == 1
    compared = compare_runs([tmp_path / "first", tmp_path / "second"])
    assert compared["runs"] == ["first", "second"]
    assert compared["config"] == {"train.seed": [0, 1]}
    assert compared["figures"]["validation_loss"] == [1.5, 1.5]
    with pytest.raises(RunError, match="no run at"):
        compare_runs([tmp_path / "first", tmp_path / "no-run"])
