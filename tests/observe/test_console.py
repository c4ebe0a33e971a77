"""What is shown while a run goes on, and how its errors are told."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

from rich.console import Console
from synthetic import START, Recorder, lively_run

from tutti.observe import follow, summarise_errors
from tutti.observe.progress import Progress
from tutti.observe.tail import Tail


def shown(run: Path, *, interactive: bool, since: float = START) -> str:
    """All that `follow` prints about a run that is over already."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=interactive, width=120, highlight=False)
    stop = threading.Event()
    stop.set()
    follow(run, stop, interactive=interactive, since=since, console=console)
    return out.getvalue()


def test_tail_reads_only_what_is_new_and_no_half_lines(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    tail = Tail(tmp_path)
    assert tail.poll() == []
    r.at(2.0, "warning", 0, message="b")
    r.at(1.0, "warning", 1, message="a")
    assert [e["message"] for e in tail.poll()] == ["a", "b"]
    assert tail.poll() == []
    path = tmp_path / "events/rank-0.jsonl"
    with path.open("a") as file:
        file.write('{"time": 3, "kind": "war')
        file.flush()
        assert tail.poll() == []
        file.write('ning", "message": "c"}\n')
    assert [e["message"] for e in tail.poll()] == ["c"]
    r.tear()
    (tmp_path / "events/rank-0.jsonl").open("ab").write(b'[1]\n"x"\n\xff\xfe\n')
    r.at(4.0, "warning", 0, message="d")
    assert [e["message"] for e in tail.poll()] == ["d"]


def test_plain_lines_tell_the_run(tmp_path: Path) -> None:
    text = shown(lively_run(tmp_path / "demo"), interactive=False)
    for part in (
        "chosen: train.precision = fp32",
        "5M parameters · 2 workers joined by allreduce · fp32 · 8,192 tokens a step · 1,000 steps",
        "rehearsed in 400 ms: write 180 MB, one evaluation batch, one save and load, one export",
        "step 100: validation loss",
        "step 600: saved 180 MB, the best so far",
        "workers are started again (attempt 1): rank 1 was ended by SIGKILL",
        "rank 1 has given no sign of life for 31.0 s",
        "step 1,000/1,000 · loss ",
        "  │ def read_csv(path, sep=",
        "finished at step 1,000",
    ):
        assert part in text
    assert text.count("chosen: replicas = 2") == 1  # not again after the restart
    assert len(text.splitlines()) < 80


def test_the_bar_is_one_for_all_workers(tmp_path: Path) -> None:
    text = shown(lively_run(tmp_path / "demo"), interactive=True)
    assert "1,000/1,000" in text and "tokens/s" in text and "bits/byte" in text


def test_who_was_given_up_counts_no_more(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    r.started(0.0, policy="diloco", transport="elastic")
    r.at(0.5, "membership", step=0, replicas=[0, 1])

    def step(number: int, rank: int) -> None:
        at = number + 0.1 * rank
        r.at(at, "step", rank, step=number, loss=2.0 + rank, tokens=1000 * (1 + rank), seconds=1.0)

    for number in range(1, 21):
        step(number, 0)
        step(number, 1)
    tail, progress = Tail(tmp_path), Progress()

    def figures() -> tuple[float | None, float | None]:
        for event in tail.poll():
            progress.take(event)
        return progress.loss, progress.tokens_per_second

    assert figures() == (2.5, 3000.0)
    r.at(20.5, "membership", step=20, replicas=[0])  # replica 1 is dead
    for number in range(21, 101):
        step(number, 0)
    assert figures() == (2.0, 1000.0)
    r.at(100.5, "membership", step=100, replicas=[0, 1])  # and back
    r.at(100.6, "run_started", 1, policy="diloco", transport="elastic", attempt=1, steps=100)
    for number in range(101, 106):
        step(number, 1)
    assert figures() == (2.5, 3000.0)


def test_events_of_an_earlier_command_are_not_told_again(tmp_path: Path) -> None:
    text = shown(lively_run(tmp_path / "demo"), interactive=False, since=START + 10_000)
    assert text.splitlines() == [text.strip()] and text.startswith("step 1,000/1,000")


def test_follow_sees_events_while_they_are_written(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    out = io.StringIO()
    stop = threading.Event()
    console = Console(file=out, width=120)
    arguments = {"interactive": False, "since": START, "console": console}
    thread = threading.Thread(target=follow, args=(tmp_path, stop), kwargs=arguments)
    thread.start()
    r.started(0.0, steps=2)
    r.steps(0.0, [1, 2])
    time.sleep(0.6)
    assert "step 2/2 · loss 4.268 · 1,000 tokens/s" in out.getvalue()
    r.at(3.0, "finished", step=2, state="finished")
    stop.set()
    thread.join(timeout=5)
    assert not thread.is_alive() and "finished" in out.getvalue()


def test_the_cause_is_shown_once_and_its_echoes_are_counted(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    r.at(-50.0, "error", 3, step=1, type="OldError", message="of an earlier command")
    echo = "[gloo] Connection closed by peer [127.0.0.1]:4242"
    r.at(4.9, "error", 0, step=12, type="RuntimeError", message=echo, hint="", traceback="T")
    cause = {"type": "TrainingError", "message": "the loss is NaN\n  → lower it", "hint": "lower it"}
    r.at(5.0, "error", 1, step=12, traceback="Traceback …", **cause)
    r.at(5.1, "error", 2, step=12, type="RuntimeError", message=echo, hint="", traceback="T")
    log = tmp_path / "logs/attempt-0/rank-1.log"
    log.parent.mkdir()
    log.write_text("Traceback …")
    (tmp_path / "logs/attempt-0/rank-10.log").write_text("another")
    assert summarise_errors(tmp_path, START) == (
        "Rank 1 failed at step 12: TrainingError: the loss is NaN\n"
        "  → lower it\n"
        "  2 other ranks lost the connection because of it\n"
        f"  log with the traceback: {log}"
    )
    assert summarise_errors(tmp_path, START + 100) is None


def test_the_same_error_everywhere_is_one_error(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    for rank in range(3):
        r.at(
            float(rank), "error", rank, step=0, type="DataError", message="shard 3 is corrupt", hint="prepare"
        )
    text = summarise_errors(tmp_path, START)
    assert text is not None
    assert text.count("shard 3 is corrupt") == 1 and "2 other ranks met the same error" in text


def test_the_writers_word_counts_more_than_the_wording(tmp_path: Path) -> None:
    r = Recorder(tmp_path)
    r.at(1.0, "error", 0, step=2, type="Odd", message="somebody left", peer=True, user=False)
    r.at(2.0, "error", 1, step=2, type="DataError", message="the socket.txt is empty", peer=False, user=True)
    assert "socket.txt" in (summarise_errors(tmp_path, START) or "")


def test_only_echoes_are_better_than_nothing(tmp_path: Path) -> None:
    Recorder(tmp_path).at(1.0, "error", 0, step=2, type="RuntimeError", message="Connection reset by peer")
    assert "Connection reset" in (summarise_errors(tmp_path, START) or "")
