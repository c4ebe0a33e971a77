"""Killed, run twice at once, spread over processes, larger than memory should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tutti.config.data import DataConfig
from tutti.core import DataError
from tutti.data import Prepared, open_prepared, prepare
from tutti.data import processes as processes_module
from tutti.data import segments as segments_module
from tutti.data import shards as shards_module

Configure = Callable[..., DataConfig]

PROGRAM = """
import json, resource, sys, time
from tutti.config.data import DataConfig
from tutti.data import prepare, segments, shards
segments.SHARD_TEXT_BYTES, shards.BYTES_WORTH_PROCESSES = int(sys.argv[3]), int(sys.argv[4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def say(line):
    print(line, flush=True)
prepared = prepare(DataConfig(**json.loads(sys.argv[1])), workers=int(sys.argv[2]), say=say)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"directory": str(prepared.directory), "grown_bytes": (after - before) * 1024}))
"""


def start(
    config: DataConfig, *, workers: int = 1, shard: int = 20_000, worth: int = 10**12
) -> subprocess.Popen[str]:
    """Prepare in another process; its output is what it says, then a line of JSON."""
    arguments = [json.dumps(config.model_dump(mode="json")), str(workers), str(shard), str(worth)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def write_text(path: Path, megabytes: float) -> Path:
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghij"), 5)) for _ in range(3000)])
    with path.open("w") as file:
        for _ in range(int(megabytes * 10)):
            lines = words[generator.integers(0, len(words), (1390, 12))]
            file.write("\n".join(" ".join(line) for line in lines) + "\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = write_text(folder / "a.txt", 0.7).read_text().splitlines()
    documents = ["\n".join(lines[at : at + 15]) for at in range(0, len(lines), 15)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return folder / "a.jsonl"


def same_content(left: Prepared, right: Prepared) -> None:
    assert left.fingerprint == right.fingerprint
    assert left.manifest.splits == right.manifest.splits


def test_killed_and_run_again_it_goes_on(
    corpus: Path, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "SHARD_TEXT_BYTES", 20_000)
    config = configure(corpus, tokenizer="bpe", vocabulary=400)
    process = start(config)
    assert process.stdout
    written = 0
    for line in process.stdout:
        written += line.startswith("wrote")
        if written == 3:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    [directory] = (tmp_path / "cache" / "prepared").iterdir()
    with pytest.raises(DataError, match="no prepared text"):
        open_prepared(directory)
    finished = {
        path: path.stat().st_mtime_ns
        for path in directory.glob("train-*.npy")
        if path.with_suffix(".json").exists()
    }
    assert len(finished) >= 3
    (directory / ".train-00099.npy.1.tmp").write_bytes(b"half")
    torn = sorted(finished)[1]
    torn.write_bytes(torn.read_bytes()[:-2])
    said: list[str] = []
    resumed = prepare(config, say=said.append)
    assert any("shards were finished before" in line for line in said)
    assert not any(line.startswith("training") for line in said)
    for path, modified in finished.items():
        if path != torn:
            assert path.stat().st_mtime_ns == modified
    assert any(line.startswith(f"wrote {torn.stem}:") for line in said)
    assert not list(directory.glob(".*"))
    same_content(resumed, prepare(config.model_copy(update={"cache": str(tmp_path / "fresh")})))


def test_processes_write_what_one_writes(
    corpus: Path, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "SHARD_TEXT_BYTES", 100_000)
    alone = prepare(configure(corpus, cache=str(tmp_path / "1")))
    monkeypatch.setattr(shards_module, "BYTES_WORTH_PROCESSES", 0)
    together = prepare(configure(corpus, cache=str(tmp_path / "2")), workers=2)
    same_content(alone, together)
    assert len(alone.splits["train"].shards) > 2


def test_an_error_or_death_of_a_writing_process_is_told(
    corpus: Path, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "SHARD_TEXT_BYTES", 100_000)
    monkeypatch.setattr(shards_module, "BYTES_WORTH_PROCESSES", 0)
    path = tmp_path / "a.jsonl"
    path.write_bytes(corpus.read_bytes())

    def shorten(line: str) -> None:
        if line.startswith("wrote"):
            path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(DataError, match=r"a\.jsonl changed while it was being prepared"):
        prepare(configure(path), workers=2, say=shorten)
    path.write_bytes(corpus.read_bytes())
    spawned: list[processes_module._Helper] = []
    original = processes_module._Helper.__init__

    def remember(helper: processes_module._Helper) -> None:
        original(helper)
        spawned.append(helper)

    monkeypatch.setattr(processes_module._Helper, "__init__", remember)
    ask = processes_module._Helper.ask

    def kill_first(helper: processes_module._Helper, task: object) -> object:
        if helper is spawned[0]:
            helper._process.send_signal(signal.SIGKILL)
        return ask(helper, task)  # type: ignore[arg-type]

    monkeypatch.setattr(processes_module._Helper, "ask", kill_first)
    with pytest.raises(DataError, match=r"killed by signal 9(\n.*)finished shards are kept"):
        prepare(configure(path), workers=2)
    assert all(helper._process.poll() is not None for helper in spawned)
    monkeypatch.undo()
    assert prepare(configure(path)).splits["train"].tokens > 0


def test_two_at_once_work_once(corpus: Path, configure: Configure) -> None:
    config = configure(corpus, tokenizer="bpe", vocabulary=400)
    both = [start(config), start(config)]
    said = [process.communicate(timeout=240)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(line.startswith("training") for lines in said for line in lines) == 1
    results = [json.loads(lines[-1])["directory"] for lines in said]
    assert results[0] == results[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(configure: Configure, tmp_path: Path) -> None:
    grown = []
    for megabytes in (6, 60):
        path = write_text(tmp_path / f"{megabytes}.txt", megabytes)
        size = path.stat().st_size
        # Characters: a token per character makes the most tokens, and takes one pass more.
        process = start(configure(path), shard=4_000_000)
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0
        result = json.loads(output.splitlines()[-1])
        grown.append(result["grown_bytes"])
        splits = open_prepared(Path(result["directory"])).splits
        assert sum(split.bytes for split in splits.values()) == size
    # What is held is a batch of a quarter of a million characters with its encodings, and the tokenizer's cache.
    assert size > 55_000_000
    assert grown[1] - grown[0] < size / 4
    assert grown[1] < 120_000_000


def test_a_dead_master_takes_its_helpers_along(configure: Configure, tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", 2)
    process = start(configure(path), workers=2, shard=50_000, worth=0)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("wrote"):
            break
    children = [
        int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert children
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
