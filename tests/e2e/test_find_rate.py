"""`tutti find-rate` on a real model: what it finds, that it finds it again, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import Here, refused, write_config

from tutti.config import Config, load_config
from tutti.core import RunError
from tutti.search.rate import _temporary, find_rate


def test_it_finds_the_same_again_and_leaves_a_picture(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path, train={"steps": 7, "batch": 8, "precision": "fp32", "learning_rate": 0.5})
    (tmp_path / "runs").mkdir()
    words = ("find-rate", "c.yaml", "replicas=1", "--steps", "60", "--to", "100", "--json")
    first = tutti_here(*words)
    assert first.code == 0, first.said
    found = first.json
    assert list((tmp_path / "runs").iterdir()) == []
    assert (tmp_path / "find-rate.png").read_bytes().startswith(b"\x89PNG")
    made = len(found["rates"])  # fewer than 60, if the loss left every bound
    assert found["rates"] == pytest.approx(np.geomspace(1e-6, 100, 60)[:made])
    assert 1e-5 < found["suggestion"] < (found["diverges"] or 100)
    by_the_rule = 4e-3 * 0.06**-0.4 * (8 * 32 / 4096) ** 0.5  # docs/explanation/recipes.md, of 60K parameters
    assert found["auto"] == pytest.approx(by_the_rule, rel=0.1) and "parameters" in found["auto_reason"]
    again = tutti_here(*words[:3], "sync=diloco", "train.optimizer=adamw", *words[3:]).json
    assert again["losses"] == pytest.approx(found["losses"], rel=1e-6)


def test_trackers_and_receivers_of_alerts_are_told_nothing() -> None:
    words = ["trackers=[wandb, tensorboard]", "alerts.finished=true", "data.source=a", "model=60K"]
    temporary = _temporary(load_config(None, words), "place", 60, 1e-3)
    assert temporary.trackers == [] and not temporary.alerts.finished


def test_what_cannot_be_found_is_refused(tutti_here: Here, tmp_path: Path) -> None:
    write_config(tmp_path)
    refused(tutti_here("find-rate", "c.yaml", "--steps", "5"), "5 steps are too few")
    refused(tutti_here("find-rate", "c.yaml", "--from", "1", "--to", "2"), "cannot grow from 1 to 2")
    refused(tutti_here("find-rate", "c.yaml", "groups=2"), "groups")
    assert not (tmp_path / "runs").exists()


def test_a_picture_that_has_no_place_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no directory"):
        find_rate(Config(), png=tmp_path / "plots" / "x.png", console=False)
