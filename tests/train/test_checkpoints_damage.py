"""Every flipped or truncated byte is found, and the checkpoint before is used."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_workers import content, step_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutti.train.checkpoints import Checkpointer, Damaged, newest_valid, verify

FILES = ("__0_0.distcp", "__0_1.distcp", ".metadata", "MANIFEST.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, both kept."""
    directory = tmp_path_factory.mktemp("run")
    checkpointer = Checkpointer(directory, keep=2)
    for step in (1, 2):
        checkpointer.save(step, content(step), {"step": step, "note": "loss 1.25"}, wait=True)
    checkpointer.close()
    return directory


def check(run: Path, file: Path, damage: Callable[[bytes], bytes], expected: str) -> list[str]:
    """Damage `file`, look for the newest checkpoint, undo; returns what was said."""
    original = file.read_bytes()
    said: list[str] = []
    try:
        file.write_bytes(damage(original))
        found = newest_valid(run, said.append)
        assert found == run / expected, said
        assert said, "damage was not reported"
    finally:
        file.write_bytes(original)
    return said


def flip(position: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit(run: Path, name: str) -> None:
    file = run / "step-2" / name
    size = file.stat().st_size
    original = file.read_bytes()
    places = range(size) if size < 2000 else sorted(random.Random(name).sample(range(size), 400))
    try:
        for place in places:
            file.write_bytes(flip(place, place % 8)(original))
            with pytest.raises(Damaged, match=name):
                verify(run / "step-2")
    finally:
        file.write_bytes(original)
    for place in random.Random(name).sample(range(size), 20):
        said = check(run, file, flip(place, place % 8), "step-1")
        assert any(name in line for line in said)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_or_growth(run: Path, name: str, data: st.DataObject) -> None:
    file = run / "step-2" / name
    size = file.stat().st_size
    cut = data.draw(st.integers(0, size - 1))
    check(run, file, lambda content: content[:cut], "step-1")
    check(run, file, lambda content: content + b"\0" * (cut + 1), "step-1")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(run: Path, name: str) -> None:
    file = run / "step-2" / name
    aside = file.rename(run / "aside")
    said: list[str] = []
    assert newest_valid(run, said.append) == run / "step-1"
    aside.rename(file)
    assert name in said[0] or name in said[1]


def test_every_bit_of_latest(run: Path) -> None:
    """The data is whole, only its name is lost: the newest whole checkpoint is found without it."""
    size = (run / "LATEST").stat().st_size
    for place in range(size):
        for bit in range(8):
            said = check(run, run / "LATEST", flip(place, bit), "step-2")
            assert "LATEST" in said[0]
        check(run, run / "LATEST", lambda content, cut=place: content[:cut], "step-2")
    check(run, run / "LATEST", lambda _: b"step-1\n", "step-2")
    check(run, run / "LATEST", lambda _: b"../x\n" + b"0" * 32 + b"\n", "step-2")


def test_a_stale_but_whole_directory_in_place_of_the_newest(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "step-2")
    shutil.copytree(copy / "step-1", copy / "step-2")
    said: list[str] = []
    found = newest_valid(copy, said.append)
    assert found is not None
    assert step_of(found) == 1
    assert "LATEST" in said[0]


def test_when_all_are_damaged_there_is_none(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for step in (1, 2):
        (copy / f"step-{step}" / ".metadata").write_bytes(b"")
    said: list[str] = []
    assert newest_valid(copy, said.append) is None
    assert len(said) == 2
