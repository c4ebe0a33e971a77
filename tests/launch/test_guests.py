"""What a machine that joined a run says of its end."""

from __future__ import annotations

import time
from pathlib import Path

from tutti.core.events import EventWriter
from tutti.supervise.guest import how_it_ended


def test_a_run_that_was_stopped_on_its_first_machine_is_not_finished(tmp_path: Path) -> None:
    events = EventWriter(tmp_path / "events", 1)
    events.write("interrupted", step=20)
    time.sleep(0.01)
    began = time.time()
    assert how_it_ended(tmp_path, began) == "finished"  # that was an earlier visit
    events.write("interrupted", step=40)
    events.close()
    assert how_it_ended(tmp_path, began) == "interrupted"
