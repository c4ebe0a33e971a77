"""SIGKILL at any moment: what `LATEST` names is always whole, and its content is of one step."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from checkpoint_workers import Forge, forge, save_for_ever, save_three_and_die, step_of

from tutti.train.checkpoints import newest_valid, verify
from tutti.train.checkpoints.manifest import LATEST, read_pointer

__all__ = ["forge"]


def committed(directory: Path) -> int:
    """The step that `LATEST` names, with everything about it checked; 0 before the first."""
    latest = read_pointer(directory / LATEST)  # raises when damaged
    said: list[str] = []
    newest = newest_valid(directory, said.append)
    assert newest == latest or latest is None  # killed before the very first LATEST, a whole one is found too
    assert all("not finished" in line for line in said), said
    if latest is None:
        return 0
    verify(latest)
    return step_of(latest)


def torture(forge: Forge, place: Path, kills: int) -> None:
    chance = random.Random(kills)
    directory, ready = place / "checkpoints", place / "ready"
    before, in_mid_save, saves = 0, 0, 0
    for _ in range(kills):
        ready.unlink(missing_ok=True)
        child = forge.start(save_for_ever, directory=str(directory), ready=str(ready))
        while not ready.exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.25))
        forge.kill(child)
        now = committed(directory)
        assert now >= before, "a committed checkpoint was lost"
        saves += now - before
        before = now
        if directory.is_dir():
            rubbish = [p for p in directory.iterdir() if p.name.startswith(".")]
            torn = [p for p in directory.glob("step-*") if not (p / "MANIFEST.json").exists()]
            in_mid_save += bool(rubbish or torn)
    assert saves > kills / 4
    assert in_mid_save > kills / 4, "the kills missed the saves: the test proves nothing"


@pytest.mark.distributed
def test_twenty_kills(forge: Forge, tmp_path: Path) -> None:
    torture(forge, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_hundred_kills(forge: Forge, tmp_path: Path) -> None:
    torture(forge, tmp_path, 200)


@pytest.mark.distributed
def test_a_kill_before_every_single_file_operation(forge: Forge, tmp_path: Path) -> None:
    """Not left to chance: three saves, with sweeping and deletion, killed before each of these operations."""
    count = tmp_path / "count"
    assert (
        forge.wait(
            forge.start(save_three_and_die, directory=str(tmp_path / "all"), at=0, count_into=str(count))
        )
        == 0
    )
    operations = int(count.read_text())
    assert operations > 25
    directory = tmp_path / "checkpoints"
    before = 0
    for at in range(1, operations + 1):
        child = forge.start(save_three_and_die, directory=str(directory), at=at, count_into=str(count))
        assert forge.wait(child) in (-9, 0)  # a later start may need fewer operations
        now = committed(directory)
        assert now >= before
        before = now
    assert before > operations / 2  # the later ones got a save or two done
