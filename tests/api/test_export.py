"""An export replaces an export, and nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import tutti
from tutti.models.export import publish_export


@pytest.mark.parametrize(
    "name", ["thesis.txt", "config.json", "adapter_config.json", "model.onnx", "tutti.json"]
)
@pytest.mark.parametrize("format", ["hugging_face", "onnx"])
def test_somebody_elses_directory_is_not_replaced(tmp_path: Path, name: str, format: str) -> None:
    """Also not one that has a file of a name that exports have, as a model from elsewhere does."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / name).write_text("years of work")
    with pytest.raises(tutti.TuttiError, match="exists and is no model that tutti exported"):
        tutti.export(tmp_path / "run", tmp_path / "precious", format=format)
    assert (tmp_path / "precious" / name).read_text() == "years of work"


def test_an_export_goes_through_a_link_to_where_one_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    real, link = tmp_path / "v3", tmp_path / "live"
    real.mkdir()
    link.symlink_to(real)
    for content in ("first", "second"):
        publish_export(tmp_path / "tokenizer", link, partial(_write, content))
        assert link.is_symlink() and (real / "weights").read_text() == content
        assert (real / "tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live", "tokenizer", "v3"]


def test_where_one_is_can_be_exported_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    publish_export(tmp_path / "tokenizer", Path(), partial(_write, "weights of it"))
    assert (tmp_path / "here" / "weights").read_text() == "weights of it"


def _write(content: str, place: Path) -> None:
    (place / "weights").write_text(content)
