"""A full disk and a read-only directory: the user's words, and the former checkpoint untouched."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_workers import content, step_of

from tutti.core import RunError
from tutti.train.checkpoints import Checkpointer, newest_valid


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_disk_full(small_disk: Path) -> None:
    directory = small_disk / "checkpoints"
    checkpointer = Checkpointer(directory, keep=2)
    checkpointer.save(1, content(1), {"step": 1}, wait=True)
    checkpointer.save(2, {"big": torch.zeros(1 << 20)}, {"step": 2})
    with pytest.raises(RunError, match="is full"):
        checkpointer.wait()
    found = newest_valid(directory)
    assert found == directory / "step-1"
    assert step_of(found) == 1
    assert not (directory / "step-2").exists(), "its space is needed"
    checkpointer.save(3, content(3), {"step": 3}, wait=True)
    assert newest_valid(directory) == directory / "step-3"


def test_disk_full_at_any_byte(small_disk: Path) -> None:
    """The space ends in the data, in the metadata, in the manifest, in LATEST: never a torn LATEST."""
    directory = small_disk / "checkpoints"
    Checkpointer(directory, keep=1).save(1, content(1), {"step": 1}, wait=True)
    failed = 0
    for pages in range(9):
        state = os.statvfs(small_disk)
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"\0" * max(0, (state.f_bavail - pages) * state.f_bsize))
        checkpointer = Checkpointer(directory, keep=1)
        try:
            checkpointer.save(100 + pages, content(100 + pages), {"step": 100 + pages}, wait=True)
        except RunError as error:
            assert "is full" in str(error)
            failed += 1
        ballast.unlink()
        found = newest_valid(directory)
        assert found is not None
        assert step_of(found) in (1, *range(100, 101 + pages))
    assert 0 < failed < 9


def test_a_file_larger_than_allowed(tmp_path: Path) -> None:
    """The same without root: the limit on file sizes (EFBIG) in place of a full disk."""
    checkpointer = Checkpointer(tmp_path, keep=2)
    checkpointer.save(1, content(1), {"step": 1}, wait=True)
    state = {"big": torch.zeros(1 << 18)}
    checkpointer.save(2, state, {"step": 2}, wait=True)  # its archive is made
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpointer.save(3, state, {"step": 3})
        with pytest.raises(RunError, match="cannot be written"):
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_valid(tmp_path) == tmp_path / "step-2"
    assert not (tmp_path / "step-3").exists()


def test_a_read_only_directory(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    if os.geteuid() == 0:  # root may write anywhere but on a read-only mount
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", directory], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("as root this needs a mount")
    else:
        directory.chmod(0o500)
    try:
        with pytest.raises(RunError, match="cannot be written"):
            Checkpointer(directory, keep=2).save(1, content(1), {"step": 1}, wait=True)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", directory], check=True)
        else:
            directory.chmod(0o700)


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    place.write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Checkpointer(place, keep=2).save(1, content(1), {"step": 1}, wait=True)
