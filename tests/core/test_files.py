"""A directory is replaced: whatever goes wrong on the way, a whole one stands there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tutti.core.files import replace_directory


def fill(directory: Path) -> None:
    (directory / "inside").mkdir()
    (directory / "inside" / "weights").write_text("new")


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(errno.EIO, "input/output error")])
@pytest.mark.parametrize("rename", [1, 2])
def test_what_was_there_comes_back(
    trouble: BaseException, rename: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real, made = tmp_path / "model", Path.rename, []
    place.mkdir()
    (place / "weights").write_text("old")

    def interrupted(self: Path, target: Path) -> Path:
        made.append(target)
        if len(made) == rename:
            raise trouble
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(type(trouble)):
        replace_directory(place, fill)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"], "and nothing lies about"
    assert (place / "weights").read_text() == "old"
    monkeypatch.undo()
    replace_directory(place, fill)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "inside", "weights"]


def test_what_cannot_be_made_leaves_what_is_there(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        fill(directory)
        raise KeyboardInterrupt

    replace_directory(tmp_path / "model", fill)
    for place in (tmp_path / "model", tmp_path / "other"):
        with pytest.raises(KeyboardInterrupt):
            replace_directory(place, fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "inside", "weights"]
