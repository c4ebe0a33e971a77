"""A disk that is full in the middle of a line costs that line, and no other; a name that is no UTF-8 costs none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tutti.core import read_events
from tutti.core.events import EventWriter


def test_a_line_that_was_cut_short_does_not_swallow_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EventWriter(tmp_path / "events", 0)
    writer.write("step", step=1)
    whole = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, content: whole(descriptor, content[:20]))
        with pytest.raises(OSError, match="No space left"):
            writer.write("step", step=2)
    writer.write("step", step=3)
    writer.write("step", step=4)
    writer.close()
    assert [event["step"] for event in read_events(tmp_path, "step")] == [1, 3, 4]


def test_what_is_said_of_a_file_whose_name_is_no_utf_8_is_kept(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events", 0)
    writer.write("error", message=f"there is no {os.fsdecode(b'caf' + bytes([0xE9]))}")
    writer.close()
    assert [event["message"] for event in read_events(tmp_path)] == ["there is no caf?"]
