"""Bad input through the real command: one clear message, exit code 2, nothing half-written, no hang."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Answer, Here, events_of, refused, started, write_config, write_text

from tutti.core import DataError
from tutti.data import open_prepared

Change = Callable[[Path], object]


def half_written(directory: Path) -> list[Path]:
    """What a refused command must not leave: a run, or prepared text that would be taken for complete and is not."""
    left = list((directory / "runs").glob("*"))
    for manifest in directory.rglob("manifest.json"):
        try:
            prepared = open_prepared(manifest.parent)
            for shard in (shard for split in prepared.splits.values() for shard in split.shards):
                assert len(prepared.open_tokens(shard)) == shard.tokens
        except (DataError, AssertionError):
            left.append(manifest)
    return left


BAD_TEXT: dict[str, tuple[Change, list[str], list[str]]] = {
    "missing file": (lambda d: (d / "text.txt").unlink(), [], ["text.txt", "→"]),
    "empty file": (lambda d: (d / "text.txt").write_bytes(b""), [], ["text.txt", "empty"]),
    "empty folder": (lambda d: (d / "docs").mkdir(), ["data.source=docs"], ["docs"]),
    "binary file": (
        lambda d: (d / "text.txt").write_bytes(bytes(range(256)) * 40),
        [],
        ["text.txt", "binary"],
    ),
    "wrong encoding": (
        lambda d: (d / "text.txt").write_bytes(b"a" * 4321 + "naïve".encode("latin-1") + b"b" * 5000),
        [],
        ["text.txt", "4323", "on_bad_encoding"],
    ),
    "unknown encoding": (lambda d: None, ["data.encoding=utf-9"], ["utf-9"]),
    "shorter than a sample": (
        lambda d: (d / "text.txt").write_text("the model\n" * 3),
        [],
        ["sample", "data.sequence"],
    ),
    "vocabulary too large": (
        lambda d: None,
        ["data.tokenizer=bpe", "data.vocabulary=30000"],
        ["30000", "data.vocabulary"],
    ),
    "no such tokenizer": (lambda d: None, ["data.tokenizer=nowhere"], ["nowhere"]),
    "lines that are no JSON": (
        lambda d: (d / "t.jsonl").write_text('{"text": "a"}\n{"text": \n'),
        ["data.source=t.jsonl"],
        ["t.jsonl", "2"],
    ),
    "JSON without the field": (
        lambda d: (d / "t.jsonl").write_text('{"body": "a"}\n'),
        ["data.source=t.jsonl"],
        ["t.jsonl", "text"],
    ),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text(case: str, tutti_here: Here, tmp_path: Path) -> None:
    change, overrides, parts = BAD_TEXT[case]
    write_config(tmp_path)
    change(tmp_path)
    for verb in ("prepare", "train"):
        refused(tutti_here(verb, "c.yaml", *overrides), *parts)
        assert half_written(tmp_path) == []
    answer = tutti_here("train", "c.yaml", *overrides, "--json")
    assert answer.code == 2
    assert parts[0] in answer.json["error"]["message"] + answer.json["error"]["hint"]


def test_wrong_encoding_can_be_skipped_or_replaced(tutti_here: Here, tmp_path: Path) -> None:
    write_config(
        tmp_path, data={"source": "texts", "sequence": 32, "cache": "cache", "tokenizer": "characters"}
    )
    (tmp_path / "texts").mkdir()
    write_text(tmp_path / "texts" / "good.txt", 100)
    (tmp_path / "texts" / "bad.txt").write_bytes("naïve ".encode("latin-1") * 200)
    refused(tutti_here("prepare", "c.yaml"), "bad.txt", "byte 2")
    skipped = tutti_here("prepare", "c.yaml", "data.on_bad_encoding=skip", "--json")
    replaced = tutti_here("prepare", "c.yaml", "data.on_bad_encoding=replace", "--json")
    assert (skipped.code, replaced.code) == (0, 0), skipped.said + replaced.said

    def size(answer: Answer) -> int:
        return sum(split["bytes"] for split in answer.json["splits"].values())

    assert size(skipped) == (tmp_path / "texts" / "good.txt").stat().st_size
    assert size(replaced) == size(skipped) + 200 * len("na\ufffdve ".encode())
    counts = open_prepared(Path(skipped.json["directory"])).counts
    assert [Path(s.name).name for s in counts.skipped] == ["bad.txt"]


BAD_SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["train.stepz=3"], ["train.stepz", "did you mean", "steps"]),
    "wrong type": (["train.steps=many"], ["train.steps", "many"]),
    "negative": (["train.batch=-1"], ["train.batch"]),
    "ddp with a layout": (["sync={implementation: ddp}", "layout=2"], ["ddp", "layout"]),
    "batch smaller than the workers": (["train.batch=1"], ["train.batch", "2 workers"]),
    "more needed replicas than there are": (["sync={policy: diloco, min_replicas: 3}"], ["min_replicas"]),
    "heads that do not divide the width": (
        [
            "model={config: {model_type: llama, hidden_size: 30, num_attention_heads: 4, num_hidden_layers: 1}}"
        ],
        ["30", "4"],
    ),
    "no such architecture": (["model={config: {model_type: lama}}"], ["lama"]),
    "no such model directory": (["model=nowhere"], ["nowhere"]),
    "two origins of a model": (["model={size: 1M, path: x}"], ["exactly one"]),
    "a module of tutti.fit": (["model={python: Net}"], ["tutti.fit"]),
    "a name that is a path": (["name=../x"], ["name"]),
    "resume of nothing": (["--resume"], ["no run", "runs"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings(case: str, tutti_here: Here, tmp_path: Path) -> None:
    overrides, parts = BAD_SETTINGS[case]
    write_config(tmp_path)
    refused(tutti_here("train", "c.yaml", *overrides), *parts)
    assert half_written(tmp_path) == []


@pytest.mark.parametrize(
    "verb", [["evaluate"], ["generate", "the"], ["export"], ["runs", "show"], ["runs", "compare"]]
)
@pytest.mark.parametrize("what", ["nothing", "file", "folder", "config only"])
def test_what_is_no_run(verb: list[str], what: str, tutti_here: Here, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_text("x")
    elif what != "nothing":
        target.mkdir()
    if what == "config only":
        if verb[0] == "runs":
            return  # a run that has just begun can be shown
        target.joinpath("config.yaml").write_text(
            "name: target\nmodel: 60K\ndata: {source: text.txt, cache: cache}\n"
        )
        write_text(tmp_path / "text.txt")
    words = (
        [verb[0], "target", *verb[1:]]
        if verb[0] != "runs"
        else [*verb, *["target"] * (1 + (verb[1] == "compare"))]
    )
    refused(tutti_here(*words), "target")
    assert (
        sorted(path.name for path in target.iterdir()) == ["config.yaml"] if what == "config only" else True
    )


# Disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """A small file system of its own: `mount(name, options)`."""
    mounted: list[Path] = []

    def make(name: str, options: str) -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root can mount a small disk")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this machine lets nobody mount: {done.stderr.decode().strip()}")
        if path not in mounted:
            mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=False)


def test_full_disk_of_the_cache(tutti_here: Here, tmp_path: Path, mount: Callable[[str, str], Path]) -> None:
    write_config(tmp_path)
    small = mount("small", "size=24k")
    refused(tutti_here("train", "c.yaml", "data.cache=small"), "small", "full")
    assert list(small.rglob("manifest.json")) == []
    assert half_written(tmp_path) == []
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    answer = tutti_here("prepare", "c.yaml", "data.cache=small", "--json")
    assert answer.code == 0, answer.said  # what was left behind is in nobody's way
    open_prepared(Path(answer.json["directory"])).require(32)


def test_disk_too_small_for_the_checkpoints(
    tutti_here: Here, tmp_path: Path, mount: Callable[[str, str], Path]
) -> None:
    """Said before the first step, by how much; the run leaves no directory, so the same command can be repeated."""
    write_config(tmp_path)
    small = mount("small", "size=1m")
    answer = tutti_here("train", "c.yaml", "runs=small")
    refused(answer, "small", "GB", "runs=")
    assert list(small.iterdir()) == []


def test_disk_without_room_for_a_directory(
    tutti_here: Here, tmp_path: Path, mount: Callable[[str, str], Path]
) -> None:
    write_config(tmp_path)
    small = mount("small", "size=1m,nr_inodes=3")
    refused(tutti_here("train", "c.yaml", "runs=small"), "small", "full")
    assert list(small.iterdir()) == []


@pytest.mark.parametrize("key", ["runs", "data.cache"])
def test_directories_that_cannot_be_written(
    key: str, tutti_here: Here, tmp_path: Path, mount: Callable[[str, str], Path]
) -> None:
    write_config(tmp_path)
    refused(tutti_here("train", "c.yaml", f"{key}=text.txt"), "text.txt")
    refused(tutti_here("train", "c.yaml", f"{key}=text.txt/below"), "text.txt")
    mount("readonly", "ro")
    refused(tutti_here("train", "c.yaml", f"{key}=readonly"), "readonly", "cannot be written")
    assert half_written(tmp_path) == []


# A process of its own -----------------------------------------------------------------------------------------


def test_a_real_process_says_it_once(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "text.txt").write_bytes(b"\x00\x01" * 500)
    with started(tmp_path, "train", "c.yaml") as command:
        answer = command.end()
    refused(answer, "binary")
    assert len(answer.err.splitlines()) == 2, answer.err
    assert half_written(tmp_path) == []
    assert not events_of(tmp_path / "runs" / "r", "error")
