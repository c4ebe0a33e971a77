"""What was written as ONNX at one start is read at the next, and never another model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from served_tasks import write_task

from tutti.serve.engine import onnx, written
from tutti.serve.engine.onnx import in_onnx
from tutti.serve.load import FoundAsker, load_any


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_task(tmp_path / "intents", "classify")


def found_in(place: Path) -> FoundAsker:
    found = load_any(place)
    assert isinstance(found, FoundAsker)
    return found


def test_the_second_start_writes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = found_in(place).asker
    rows = list(asker.read(asker.task.asked_about(["my card is lost"])))
    first = in_onnx(asker, int8=False).answer(rows)
    assert np.allclose(first, asker.answer(rows), atol=1e-4)
    (kept,) = written.directory().iterdir()

    with monkeypatch.context() as patched:
        patched.setattr(onnx, "export_fastest", None)  # cannot be called
        assert np.array_equal(in_onnx(found_in(place).asker, int8=False).answer(rows), first)
        with pytest.raises(TypeError):
            in_onnx(asker, int8=True)
        with torch.no_grad():
            asker.objective.model.classifier.bias += 1  # type: ignore[union-attr, operator]
        with pytest.raises(TypeError):  # other weights are another model
            in_onnx(asker, int8=False)

    (kept / "model.onnx").write_bytes(b"half")
    assert np.array_equal(in_onnx(found_in(place).asker, int8=False).answer(rows), first)
    assert [one.name for one in written.directory().iterdir()] == [kept.name]
    assert (kept / "model.onnx").stat().st_size > 1000


def test_where_nothing_can_be_kept_it_is_written_each_time(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    asker = found_in(place).asker
    rows = list(asker.read(asker.task.asked_about(["my card is lost"])))
    assert np.allclose(in_onnx(asker, int8=False).answer(rows), asker.answer(rows), atol=1e-4)
    assert (tmp_path / "file").read_text() == ""


def test_what_was_not_used_for_longest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def get(name: str) -> str:
        return str(
            written.kept(name, lambda path: path.write_text(name) and None, lambda path: path.read_text())
        )

    names = [f"model-{number}" for number in range(written._KEPT + 2)]
    for name in names:
        assert get(name) == name
        assert get(names[0]) == names[0]  # always in use
    left = {one.name for one in written.directory().iterdir()}
    assert len(left) == written._KEPT and names[0] in left and names[-1] in left and names[1] not in left
