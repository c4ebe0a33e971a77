"""What trackers were told, read back with their own libraries, beside the events; and what it costs when one fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from synthetic import START, Recorder, lively_run

from tutti.core import ConfigError, read_events
from tutti.observe.history import read_history
from tutti.observe.trackers import Trackers, check_trackers
from tutti.observe.trackers.feeding import Feed, ending_of
from tutti.observe.trackers.tracker import Ending, Row

Said = list[tuple[str, str]]
Curve = dict[int, float]


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's account, nobody's server."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def track(run: Path, *names: str, seconds: float = 60.0, since: float = START) -> Said:
    """What goes wrong while these trackers are told of a run that is over."""
    said: Said = []
    Trackers(run, names, lambda name, message: said.append((name, message)), since).end(seconds)
    return said


METRICS = {"accuracy": 0.75, "f1 macro": 0.5, "ndcg@10": 0.25}


def small_run(path: Path) -> Path:
    """Ten steps, of which those after the sixth are done again after a restart; metrics, NaN, a test."""
    config = (
        "name: small\ntrain: {batch: 8}\nalerts: {webhook: 'https://example.org/s3cret'}\n"
        "data: {weights: {'hf:who/what?split=train': 2}}\n"
    )
    r = Recorder(path, config)
    r.at(0.0, "launched", -1, resume=False, version="9.9", commit="c0ffee" * 6 + "dead-dirty")
    r.started(1.0, steps=10)
    r.steps(1.0, range(1, 9))
    r.started(20.0, steps=10, attempt=1, resumed_from=6)
    r.steps(20.0, [7, 8, 9, 10], loss=1.5)
    r.at(25.0, "validation", step=10, loss=float("nan"), metrics=METRICS)
    r.at(26.0, "test", step=10, loss=1.25, metrics={"accuracy": 0.7})
    r.at(27.0, "finished", step=10, state="finished")
    (path / "report.md").write_text("# small\n")
    (path / "loss.png").write_bytes(b"\x89PNG")
    return path


def curve_in_events(run: Path, field: str = "loss") -> Curve:
    """Of each step the value that was written last: plainly, from the lines of the leading rank."""
    lines = (run / "events" / "rank-0.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return {e["step"]: float(e[field]) for e in events if e["kind"] == "step" and field in e}


def mlflow_run(uri: str, run_id: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri).get_run(run_id)


def mlflow_curve(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)
    return [(point.step, point.value) for point in sorted(history, key=lambda m: m.timestamp)]


def pieces(content: bytes) -> Iterator[bytes]:
    """What lies in a `.wandb` file: a log in LevelDB's format, after seven bytes of its own."""
    assert content[:4] == b":W&B"
    place, data = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left  # a header is never cut
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, place)
        part = content[place + 7 : place + 7 + length]
        assert zlib.crc32(bytes([kind]) + part) == checksum
        data, place = data + part, place + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield data
            data = b""


def wandb_records(run: Path) -> list[Any]:
    """Every record of every offline file of the run, oldest first, as W&B's own schema has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    return [Record.FromString(piece) for file in files for piece in pieces(file.read_bytes())]


def wandb_curve(run: Path, name: str) -> list[tuple[int, float]]:
    found = []
    for record in wandb_records(run):
        row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if name in row:
            found.append((int(json.loads(row["step"])), float(json.loads(row[name]))))
    return found


def test_tensorboard_has_the_curves_the_settings_and_the_report(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = small_run(tmp_path / "small")
    assert track(run, "tensorboard") == []
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    points = [(p.step, pytest.approx(p.value, rel=1e-6)) for p in read.Scalars("loss/train")]
    assert points == list(curve_in_events(run).items())  # those done again stand there once
    assert [p.value for p in read.Scalars("validation/accuracy")] == [0.75]
    assert [p.value for p in read.Scalars("validation/ndcg@10")] == [0.25]
    assert [p.value for p in read.Scalars("report/steps_repeated")] == [2]
    text = {
        tag: read.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()
        for tag in ("configuration", "report")
    }
    assert "batch: 8" in text["configuration"] and "c0ffee" in text["configuration"]
    assert "s3cret" not in text["configuration"] and text["report"] == "# small\n"


def test_a_long_run_is_whole_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = lively_run(tmp_path / "demo")
    assert track(run, "tensorboard") == []
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in read.Scalars("loss/train")] == list(range(1, 1001))
    assert len(read.Scalars("loss/validation")) == 10


def test_mlflow_has_it_and_goes_on_with_it(tmp_path: Path) -> None:
    run, uri = small_run(tmp_path / "small"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert track(run, "mlflow") == [], (run / "logs" / "mlflow.log").read_text()
    run_id = json.loads((run / "tracked" / "mlflow.json").read_text())[uri]
    curve = mlflow_curve(uri, run_id, "loss/train")
    assert dict(curve) == pytest.approx(curve_in_events(run)) and len(curve) == 12
    assert mlflow_curve(uri, run_id, "validation/f1 macro") == [(10, 0.5)]
    assert mlflow_curve(uri, run_id, "validation/ndcg_at_10") == [(10, 0.25)]  # it allows no @
    found = mlflow_run(uri, run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "small"
    assert found.data.params["data.weights.hf_who/what_split_train"] == "2"
    assert found.data.params["train.batch"] == "8" and "s3cret" not in str(found.data.params)
    assert found.data.tags["mlflow.source.git.commit"] == "c0ffee" * 6 + "dead"
    assert found.data.tags["tutti.tutti"] == "9.9"
    assert found.data.metrics["report/steps"] == 10
    kept = {file.name for file in (tmp_path / "mlartifacts").rglob("*") if file.is_file()}
    assert kept == {"report.md", "loss.png"}

    # Resumed with another batch and two more steps: the same run there, and only what is new.
    r = Recorder(run, "name: small\ntrain: {batch: 16}\n")
    r.at(100.0, "launched", -1, resume=True)
    r.started(101.0, steps=12, resumed_from=10)
    r.steps(101.0, [11, 12])
    r.at(110.0, "interrupted", step=12)
    assert track(run, "mlflow", since=START + 99) == []
    assert len(mlflow_curve(uri, run_id, "loss/train")) == 14
    found = mlflow_run(uri, run_id)
    assert found.info.status == "KILLED" and found.data.params["train.batch"] == "8"
    assert found.data.tags["tutti.resumed.train.batch"] == "16"


def test_what_was_deleted_in_mlflow_is_begun_anew(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from tutti.observe.trackers.introduce import introduce
    from tutti.observe.trackers.mlflow import MLflowTracker

    run, client = small_run(tmp_path / "small"), MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")

    def begun() -> Any:
        MLflowTracker(introduce(run)).begin(10)
        remembered = json.loads((run / "tracked" / "mlflow.json").read_text())
        return client.get_run(remembered[f"sqlite:///{tmp_path / 'mlflow.db'}"]).info

    first = begun()
    assert begun().run_id == first.run_id
    client.delete_run(first.run_id)
    second = begun()
    assert second.run_id != first.run_id and second.experiment_id == first.experiment_id
    client.delete_experiment(first.experiment_id)
    third = begun()
    assert client.get_experiment(third.experiment_id).name == "tutti-2"
    client.delete_run(third.run_id)
    assert begun().experiment_id == third.experiment_id
    assert client.get_run(second.run_id).info.lifecycle_stage == "deleted"  # nobody wants it back


def test_wandb_has_it_offline_and_goes_on_with_it(tmp_path: Path) -> None:
    run = small_run(tmp_path / "small")
    assert track(run, "wandb") == [], (run / "logs" / "wandb.log").read_text()
    curve = wandb_curve(run, "loss/train")
    assert dict(curve) == pytest.approx(curve_in_events(run)) and len(curve) == 12
    assert wandb_curve(run, "validation/accuracy") == [(10, 0.75)]
    assert wandb_curve(run, "validation/ndcg@10") == [(10, 0.25)]
    records = wandb_records(run)
    (about,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
    settings = {item.key: item.value_json for item in about.config.update}
    assert about.display_name == "small" and about.project == "tutti"
    assert json.loads(settings["train"]) == {"batch": 8} and "s3cret" not in str(about)
    assert json.loads(settings["source"])["commit"].startswith("c0ffee")
    summary = {i.key: i.value_json for record in records for i in record.summary.update}
    assert json.loads(summary["report/steps"]) == 10
    saved = {item.path for record in records for item in record.files.files}
    assert {"report.md", "loss.png"} <= saved
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]

    r = Recorder(run)
    r.started(101.0, steps=12, resumed_from=10)
    r.steps(101.0, [11, 12])
    assert track(run, "wandb", since=START + 99) == []
    ids = {r.run.run_id for r in wandb_records(run) if r.WhichOneof("record_type") == "run"}
    assert len(ids) == 1 and [step for step, _ in wandb_curve(run, "loss/train")][-2:] == [11, 12]


def test_of_replicas_that_step_together_one_speaks(tmp_path: Path) -> None:
    from tutti.observe.tail import Tail
    from tutti.observe.trackers.rows import Rows

    r = Recorder(tmp_path)
    r.started(0.0, transport="elastic")
    for step, rank in ((1, 1), (1, 0), (2, 0), (2, 1), (3, 1)):  # replica 0 is dead at step 3
        r.at(step + 0.1 * rank, "step", rank, step=step, loss=float(step))
    said = [(row.step, row.values) for row in Rows().of(Tail(tmp_path).poll()) if isinstance(row, Row)]
    assert said == [(step, {"loss/train": float(step)}) for step in (1, 2, 3)]


def test_replicas_on_their_own_way_have_curves_of_their_own(tmp_path: Path) -> None:
    from tutti.observe.tail import Tail
    from tutti.observe.trackers.rows import Rows

    r = Recorder(tmp_path)
    r.started(0.0, policy="diloco", transport="elastic")
    for rank in (0, 1):
        r.at(1.0 + rank, "step", rank, step=1, loss=2.0 + rank, tokens=100, seconds=0.5)
    values = [row.values for row in Rows().of(Tail(tmp_path).poll()) if isinstance(row, Row)]
    assert values == [
        {"loss/train": 2.0, "time/step_seconds": 0.5, "time/tokens_per_second": 200.0},
        {"loss/train/rank-1": 3.0, "time/step_seconds/rank-1": 0.5},
    ]


def test_a_run_that_failed_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r")
    r.started(0.0)
    r.at(1.0, "error", step=0, type="DataError", message="no text")
    assert track(tmp_path / "r", "tensorboard", "wandb") == []
    assert not (tmp_path / "r" / "tensorboard").exists() and not (tmp_path / "r" / "wandb").exists()


def test_parts_of_a_run_are_named_after_it(tmp_path: Path) -> None:
    from tutti.observe.trackers.introduce import introduce

    Recorder(tmp_path / "runs" / "mine-search" / "trials" / "3")
    known = introduce(tmp_path / "runs" / "mine-search" / "trials" / "3")
    assert (known.title, known.home) == ("mine-search/3", tmp_path / "runs")


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"wandb, which is not installed\n  → pip install 'tutti\[wandb\]'"):
        check_trackers(["tensorboard", "wandb"])


# What goes wrong -----------------------------------------------------------------------------------------------------


class Flaky:
    """A tracker that is away for its first calls, and then works."""

    def __init__(self, away: int) -> None:
        self.away, self.rows, self.ended = away, list[Row](), list[Ending]()

    def begin(self, resumed_from: int | None) -> None:
        self.away -= 1
        if self.away >= 0:
            raise ConnectionError("nobody there\nsecond line")

    def write(self, rows: Any) -> None:
        self.rows += rows

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)


def test_what_a_tracker_missed_is_told_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutti.observe.trackers.feeding._AGAIN_SECONDS", 0.0)
    monkeypatch.setattr("tutti.observe.trackers.feeding._EVERY_SECONDS", 0.0)
    run, said, over, tracker = small_run(tmp_path / "small"), list[str](), threading.Event(), Flaky(3)
    thread = threading.Thread(target=Feed(run, lambda: tracker, said.append, START).go_on, args=(over,))
    thread.start()
    deadline = time.monotonic() + 30
    while len(tracker.rows) < 14 and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    thread.join(30)
    assert said == ["ConnectionError: nobody there"]
    assert [row.step for row in tracker.rows if "loss/train" in row.values] == [*range(1, 9), 7, 8, 9, 10]
    assert [ending.state for ending in tracker.ended] == ["finished"]


def processes(name: str) -> list[psutil.Process]:
    """Those of this test's trackers."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if p.cmdline()[3:5] == ["tutti.observe.trackers", name]]


def test_a_tracker_that_is_killed_costs_one_warning(tmp_path: Path) -> None:
    said: Said = []
    trackers = Trackers(small_run(tmp_path / "r"), ["mlflow"], lambda *what: said.append(what), START)
    (process,) = processes("mlflow")
    process.send_signal(signal.SIGKILL)
    trackers.end()
    ((name, message),) = said
    assert name == "mlflow" and "was ended by SIGKILL" in message


@pytest.fixture
def silent_server() -> Iterator[str]:
    """It takes every connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracker_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    said: Said = []
    trackers = Trackers(small_run(tmp_path / "r"), ["mlflow"], lambda *what: said.append(what), START)
    (process,) = processes("mlflow")
    began = time.monotonic()
    trackers.end(3.0)
    assert time.monotonic() - began < 20  # far from the minutes that MLflow would take
    assert [name for name, _ in said] == ["mlflow"] and "was not done 3 s after" in said[0][1]
    assert not process.is_running()


def test_a_process_whose_launcher_is_dead_ends_by_itself(tmp_path: Path) -> None:
    run = small_run(tmp_path / "r")
    script = (
        "import os; from pathlib import Path; from tutti.observe.trackers import Trackers\n"
        f"trackers = Trackers(Path({str(run)!r}), ['wandb'], print, {START})\n"
        "print(trackers._hosts[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(60)
    assert [record.exit.exit_code for record in wandb_records(run) if record.HasField("exit")] == [0]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a directory a file system of its own with 96 KiB."""
    made: list[Path] = []

    def mount(place: Path) -> None:
        place.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        made.append(place)

    yield mount
    for place in made:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_full_disk_costs_one_warning(
    tmp_path: Path, tiny_disk: Callable[[Path], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = lively_run(tmp_path / "runs" / "demo"), tmp_path / "elsewhere"
    tiny_disk(elsewhere if name == "mlflow" else run / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlflow.db")
    before = read_history(run)
    said = track(run, name, seconds=20.0)
    assert [who for who, _ in said] == [name], (said, list(run.glob("logs/*")))
    assert read_history(run) == before and ending_of(run).state == "finished"


def test_a_warning_after_the_end_is_no_time_of_the_run(tmp_path: Path) -> None:
    run = small_run(tmp_path / "r")
    before = ending_of(run).figures
    Recorder(run, (run / "config.yaml").read_text()).at(
        900.0, "warning", -1, tracker="wandb", message="wandb: late"
    )
    assert ending_of(run).figures == before
    assert [e["message"] for e in read_events(run, "warning")] == ["wandb: late"]
