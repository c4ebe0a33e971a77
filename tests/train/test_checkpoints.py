"""Saving and finding: what is written, kept, said and refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_workers import content, step_of

from tutti.core import CheckpointError, RunError
from tutti.train.checkpoints import Checkpointer, Damaged, load, newest_valid, save, verify, writer


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_dir()}


def saver(directory: Path, keep: int = 2, said: list[str] | None = None) -> Checkpointer:
    return Checkpointer(
        directory, keep=keep, rank=0, group=None, say=(said if said is not None else []).append
    )


def test_what_is_loaded_is_what_was_saved_also_after_training_went_on(tmp_path: Path) -> None:
    checkpointer = saver(tmp_path)
    state = content(3)
    blocked = checkpointer.save(3, state, {"step": 3, "cursor": [12, None], "note": "ä"})
    state["model"]["weight"].zero_()
    state["plain"]["names"].append("late")
    checkpointer.close()
    path = newest_valid(tmp_path)
    assert path == tmp_path / "step-3"
    assert step_of(path) == 3
    [saved] = checkpointer.last_saved
    assert (saved.step, saved.path, saved.best) == (3, path, False)
    assert saved.bytes == sum(file.stat().st_size for file in path.iterdir() if file.name != "MANIFEST.json")
    assert 0 < saved.blocked_seconds <= blocked
    assert saved.write_seconds > 0
    target = content(0)
    meta = load(path, target)
    assert meta["cursor"] == [12, None]
    assert meta["note"] == "ä"
    assert meta["saved_with"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]
)
def test_every_dtype_and_shape_is_read_by_plain_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(), (0, 3), (1,), (7,), (33, 5), (2, 3, 4)]
    state = {
        "t": [torch.randint(0, 2, shape).to(dtype) for shape in shapes],
        "strided": torch.ones(4, 6).to(dtype).T[1:],
    }
    saver(tmp_path).save(1, state, {}, wait=True)
    found = {
        "t": [torch.zeros(shape, dtype=dtype) for shape in shapes],
        "strided": torch.zeros(5, 4, dtype=dtype),
    }
    dcp.load(found, checkpoint_id=tmp_path / "step-1", no_dist=True)
    assert torch.equal(found["strided"], state["strided"])
    assert all(torch.equal(a, b) for a, b in zip(found["t"], state["t"], strict=True))


def test_the_buffer_follows_when_the_state_changes_its_form(tmp_path: Path) -> None:
    checkpointer = saver(tmp_path)
    for step, width in enumerate((3, 3000, 5)):
        checkpointer.save(step, {"w": torch.full((width, 7), float(step))}, {}, wait=True)
        found = {"w": torch.zeros(width, 7)}
        load(tmp_path / f"step-{step}", found)
        assert torch.equal(found["w"], torch.full((width, 7), float(step)))


def test_a_state_of_plain_values_alone(tmp_path: Path) -> None:
    saver(tmp_path).save(1, {"numbers": {"a": 1, "b": [1, 2]}}, {}, wait=True)
    found: dict[str, Any] = {"numbers": {"a": 0, "b": []}}
    load(tmp_path / "step-1", found)
    assert found == {"numbers": {"a": 1, "b": [1, 2]}}


def test_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    checkpointer = saver(tmp_path, keep=2)
    for step in range(1, 7):
        checkpointer.save(step, content(step), {"step": step}, best=step in (1, 3))
    checkpointer.wait()
    assert names(tmp_path) == {"step-3", "step-5", "step-6"}
    assert (tmp_path / "BEST").read_text().split()[0] == "step-3"
    assert (tmp_path / "LATEST").read_text().split()[0] == "step-6"
    assert [saved.step for saved in checkpointer.last_saved if saved.best] == [1, 3]


def test_a_later_process_knows_the_best(tmp_path: Path) -> None:
    saver(tmp_path, keep=1).save(1, content(1), {"step": 1}, best=True, wait=True)
    checkpointer = saver(tmp_path, keep=1)
    checkpointer.save(2, content(2), {"step": 2}, wait=True)
    assert names(tmp_path) == {"step-1", "step-2"}
    checkpointer.save(3, content(3), {"step": 3}, best=True, wait=True)
    assert (tmp_path / "BEST").read_text().split()[0] == "step-3"
    checkpointer.save(4, content(4), {"step": 4}, wait=True)
    assert names(tmp_path) == {"step-3", "step-4"}


def test_the_same_step_again_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    for _ in range(3):
        saver(tmp_path, keep=2).save(5, content(5), {"step": 5}, wait=True)
    assert names(tmp_path) == {"step-5.2", "step-5.3"}
    assert newest_valid(tmp_path) == tmp_path / "step-5.3"
    assert step_of(tmp_path / "step-5.3") == 5


def test_a_run_that_went_back_keeps_what_it_wrote_last(tmp_path: Path) -> None:
    for step in (10, 20, 15):
        saver(tmp_path, keep=2).save(step, content(step), {"step": step}, wait=True)
    assert names(tmp_path) == {"step-20", "step-15"}
    assert newest_valid(tmp_path) == tmp_path / "step-15"
    saver(tmp_path, keep=2).save(16, content(16), {"step": 16}, wait=True)
    assert names(tmp_path) == {"step-15", "step-16"}


def test_torn_directories_are_passed_over_and_swept(tmp_path: Path) -> None:
    saver(tmp_path).save(1, content(1), {"step": 1}, wait=True)
    torn = tmp_path / "step-2"
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / ".trash-step-0").mkdir()
    (tmp_path / ".LATEST.77.tmp").write_text("step")
    (tmp_path / "notes").mkdir()  # not ours
    said: list[str] = []
    assert newest_valid(tmp_path, said.append) == tmp_path / "step-1"
    with pytest.raises(CheckpointError, match="not finished"):
        load(torn, content(2))
    saver(tmp_path).save(2, content(2), {"step": 2}, wait=True)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "step-1", "step-2", "LATEST"}
    assert step_of(torn) == 2


def test_a_whole_checkpoint_that_was_never_committed_is_the_last_choice(tmp_path: Path) -> None:
    for step in (1, 2):
        saver(tmp_path).save(step, content(step), {"step": step}, wait=True)
        if step == 1:
            before = (tmp_path / "LATEST").read_bytes()
    (tmp_path / "LATEST").write_bytes(before)  # killed between the manifest and LATEST
    assert newest_valid(tmp_path) == tmp_path / "step-1"
    (tmp_path / "step-1" / ".metadata").unlink()
    assert newest_valid(tmp_path) == tmp_path / "step-2"


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) is None
    assert newest_valid(tmp_path / "missing") is None


def test_another_version_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "__version__", "0.0.9")
    saver(tmp_path).save(1, content(1), {"step": 1}, wait=True)
    said: list[str] = []
    newest_valid(tmp_path, said.append)
    assert len(said) == 1
    assert "tutti 0.0.9" in said[0]


def test_another_model_is_refused_with_the_first_differences(tmp_path: Path) -> None:
    saver(tmp_path).save(1, {"model": {"a": torch.ones(2, 3), "b": torch.ones(4), "x": 1}}, {}, wait=True)
    other = {"model": {"a": torch.zeros(3, 3), "c": torch.zeros(4), "x": torch.zeros(1)}}
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "step-1", other)
    text = str(caught.value)
    assert "another model" in text
    assert "model.a: (2, 3) in the checkpoint, (3, 3) here" in text
    assert "model.b: only in the checkpoint" in text
    assert "model.c: not in the checkpoint" in text
    assert "model.x: a tensor in one" in text
    assert "config.yaml" in caught.value.hint
    assert torch.equal(other["model"]["a"], torch.zeros(3, 3))


def test_a_part_can_be_loaded_alone(tmp_path: Path) -> None:
    state = {"model": {"a": torch.ones(2)}, "optimizer": {"a": {"step": torch.tensor(3.0)}}}
    saver(tmp_path).save(1, state, {}, wait=True)
    part = {"model": {"a": torch.zeros(2)}}
    load(tmp_path / "step-1", part)
    assert torch.equal(part["model"]["a"], torch.ones(2))
    with pytest.raises(CheckpointError, match="another optimizer"):
        load(tmp_path / "step-1", {**part, "optimizer": {"a": {"momentum": torch.zeros(2)}}})


def test_meta_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        saver(tmp_path).save(1, content(1), {"loss": float("nan")})


def test_training_goes_on_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = writer.write_file

    def slow(path: Path, data: memoryview) -> Any:
        assert gate.wait(30)
        return real(path, data)

    monkeypatch.setattr(writer, "write_file", slow)
    checkpointer = saver(tmp_path)
    checkpointer.save(1, content(1), {"step": 1})
    assert not (tmp_path / "LATEST").exists()
    assert checkpointer.last_saved == []
    threading.Timer(0.2, gate.set).start()
    blocked = checkpointer.save(2, content(2), {"step": 2})  # waits for the first
    assert blocked > 0.1
    assert [saved.step for saved in checkpointer.last_saved] == [1]
    checkpointer.close()
    assert step_of(tmp_path / "step-1") == 1
    assert step_of(tmp_path / "step-2") == 2
    assert checkpointer.last_saved[1].blocked_seconds == pytest.approx(blocked, abs=0.01)


def test_a_failure_in_the_background_surfaces_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = saver(tmp_path)
    checkpointer.save(1, content(1), {"step": 1}, wait=True)
    before = (tmp_path / "LATEST").read_bytes()

    def full(path: Path, data: memoryview) -> Any:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_file", full)
        checkpointer.save(2, content(2), {"step": 2})
        with pytest.raises(RunError, match="full"):
            checkpointer.save(3, content(3), {"step": 3})
    assert (tmp_path / "LATEST").read_bytes() == before
    assert names(tmp_path) == {"step-1"}
    checkpointer.save(4, content(4), {"step": 4}, wait=True)
    assert step_of(tmp_path / "step-4") == 4

    def broken(path: Path, data: memoryview) -> Any:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(writer, "write_file", broken)
    with pytest.raises(CheckpointError, match="step 5 could not be written: ZeroDivisionError: odd"):
        checkpointer.save(5, content(5), {"step": 5}, wait=True)
    assert [saved.step for saved in checkpointer.last_saved] == [1, 4]


def test_a_manifest_is_readable_by_people(tmp_path: Path) -> None:
    saver(tmp_path).save(1, content(1), {"step": 1, "cursor": 7}, wait=True)
    manifest = json.loads((tmp_path / "step-1" / "MANIFEST.json").read_text())
    assert manifest["meta"] == {"step": 1, "cursor": 7}
    assert set(manifest["files"]) == {"__0_0.distcp", "__0_1.distcp", ".metadata"}
    verify(tmp_path / "step-1")
    with pytest.raises(Damaged, match="not finished"):
        verify(tmp_path)
