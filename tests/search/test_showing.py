"""A short run is told while it goes on: events as a run writes them, one by one."""

from __future__ import annotations

import time
from pathlib import Path

from tutti.core.events import EventWriter
from tutti.search.showing import shown


def test_steps_are_told_now_and_then_while_they_come(tmp_path: Path) -> None:
    said: list[str] = []
    events = EventWriter(tmp_path / "events", rank=0)
    with shown(tmp_path, 16, said.append):
        for step in range(1, 17):
            events.write("step", step=step, samples=[])  # of a rank that does not speak
            events.write("step", step=step, loss=10.0 / step, learning_rate=1e-3 * step)
            time.sleep(0.15)
        events.close()
    assert 3 <= len(said) <= 8
    for line in said:
        step = int(line.split()[1].partition("/")[0])
        assert line == f"step {step}/16 · learning rate {1e-3 * step:.1e} · loss {10 / step:.3f}"
    assert [int(line.split()[1].partition("/")[0]) for line in said] == sorted(
        {int(line.split()[1].partition("/")[0]) for line in said}
    )
