"""Other replicas that end well do not hide that the one with the model did not."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from tutti import api
from tutti.config import load_config
from tutti.core import TuttiError
from tutti.core.events import read_events


def test_a_model_that_cannot_be_handed_on_is_a_failed_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a cat sat on a mat, and that was that. " * 400)
    words = [
        *("name=lost", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "replicas=2"),
        *(
            f"data.source={tmp_path / 'text.txt'}",
            "data.tokenizer=characters",
            "data.sequence=32",
            "model=60K",
        ),
        *("train.steps=200", "train.batch=8", "train.precision=fp32", "evaluate.prompts=[]"),
    ]
    run = tmp_path / "runs" / "lost"

    def take_away() -> None:
        """What the export needs, as soon as it has been looked at for the last time before."""
        while not (run / "events").is_dir() or not any(True for _ in read_events(run, "step")):
            time.sleep(0.05)
        for directory in (tmp_path / "cache").rglob("tokenizer"):
            shutil.rmtree(directory)

    thief = threading.Thread(target=take_away, daemon=True)
    thief.start()
    with pytest.raises(TuttiError, match=r"tokenizer|cannot be written|No such file"):
        api.train(load_config(None, words), console=False)
    thief.join(10)
    assert not (run / "export").exists()
    ended = [event for event in read_events(run, "finished") if event["rank"] == 0]
    assert not ended and max(event["step"] for event in read_events(run, "step")) == 200
