"""A disk that is full in the middle of a line costs that line, and no other."""

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
