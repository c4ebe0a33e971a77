"""Runs in Weights & Biases: at its service where there is a key, or else in files of the run for `wandb sync`."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Sequence
from typing import Any

import wandb

from tutti.core.files import is_full
from tutti.observe.trackers.introduce import Memory
from tutti.observe.trackers.tracker import COLLECTION, Ending, Row, TrackedRun


class WandbTracker:
    """One W&B run, which a resumed run goes on with."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._memory = Memory(run.path, "wandb")
        self._there: Any = None

    def begin(self, resumed_from: int | None) -> None:
        if self._there is not None:
            return  # what is done again stands there twice, the later one later
        known = self._memory.read()
        run_id = known.get("run_id") or secrets.token_hex(8)
        self._memory.write({"run_id": run_id})
        said = "WANDB_MODE" in os.environ
        self._there = wandb.init(
            id=run_id,
            resume="allow",
            name=self._run.title,
            project=os.environ.get("WANDB_PROJECT", COLLECTION),
            config=dict(self._run.settings) | {"source": dict(self._run.tags)},
            dir=str(self._run.path),
            mode=None if said or wandb.login(prompt=False, verify=False) else "offline",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True),
        )
        # A step that is done again is no step forward, which W&B's own counter wants.
        self._there.define_metric("step", hidden=True)
        self._there.define_metric("*", step_metric="step")

    def write(self, rows: Sequence[Row]) -> None:
        self._need_room()
        for row in rows:
            self._there.log({"step": row.step, **row.values})

    def end(self, ending: Ending) -> None:
        self._need_room()
        self._there.summary.update({f"report/{name}": value for name, value in ending.figures.items()})
        for file in ending.files:
            self._there.save(str(file), base_path=str(file.parent), policy="now")
        self._there.finish(exit_code=0 if ending.state == "finished" else 1)
        wandb.teardown()

    def _need_room(self) -> None:
        """W&B itself says nothing of a full disk."""
        if is_full(place := self._run.path / "wandb"):
            raise OSError(errno.ENOSPC, f"the disk that holds {place} is full")
