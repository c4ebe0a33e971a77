"""Runs in MLflow: at `MLFLOW_TRACKING_URI`, or else in `mlflow.db` beside the runs.

The client is asked with the run's id each time, so nothing here touches what else a program does with MLflow.
"""

from __future__ import annotations

import fcntl
import json
import os
import posixpath
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tutti.core.address import without_secrets
from tutti.observe.page import flat
from tutti.observe.trackers.introduce import Memory
from tutti.observe.trackers.tracker import COLLECTION, Ending, Row, TrackedRun

#: What one request may hold, and how long a parameter and a name may be.
_METRICS, _PARAMETERS, _LONGEST, _LONGEST_NAME = 1000, 100, 6000, 250

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflowTracker:
    """One MLflow run, which a resumed run goes on with."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._memory = Memory(run.path, "mlflow")
        self._client: Any = None
        self._id = ""

    def begin(self, resumed_from: int | None) -> None:
        if self._client is not None:
            return  # what is done again stands there twice, the later one later
        local = f"sqlite:///{self._run.home / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        with _alone(self._run, uri == local):
            client = MlflowClient(tracking_uri=uri)
            self._id = self._go_on(client, uri) or self._create(client, uri, uri == local)
        self._say_settings(client)
        self._client = client

    def write(self, rows: Sequence[Row]) -> None:
        self._log(
            (_name(name), value, int(row.time * 1000), row.step)
            for row in rows
            for name, value in row.values.items()
        )

    def end(self, ending: Ending) -> None:
        now = int(time.time() * 1000)
        self._log(
            (_name(f"report/{name}"), value, now, ending.step) for name, value in ending.figures.items()
        )
        for file in ending.files:
            self._client.log_artifact(self._id, str(file))
        self._client.set_terminated(self._id, _STATUS.get(ending.state, "FAILED"))

    def _log(self, metrics: Iterator[tuple[str, float, int, int]]) -> None:
        found = [Metric(*metric) for metric in metrics]
        for first in range(0, len(found), _METRICS):
            self._client.log_batch(self._id, metrics=found[first : first + _METRICS])

    def _go_on(self, client: Any, uri: str) -> str | None:
        """The id of the run that this one has there already."""
        known = self._memory.read().get(without_secrets(uri))
        if known is None:
            return None
        try:
            found = client.get_run(known)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # somebody deleted it for good
        if found.info.lifecycle_stage != "active":
            return None  # or in MLflow's pages, which keep it and let nobody write to it
        client.update_run(known, status="RUNNING")
        return known

    def _create(self, client: Any, uri: str, local: bool) -> str:
        experiment = self._experiment(client, local)
        commit = self._run.tags.get("commit", "")
        tags = {f"tutti.{name}": value for name, value in self._run.tags.items()}
        if commit:
            tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
        run_id = str(client.create_run(experiment, tags=tags, run_name=self._run.title).info.run_id)
        self._memory.write(self._memory.read() | {without_secrets(uri): run_id})
        return run_id

    def _experiment(self, client: Any, local: bool) -> str:
        """The id of the experiment. One that was deleted keeps its name, and restored it would have all its runs back,
        which somebody did not want: the next one is called NAME-2."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", COLLECTION)
        called, number = name, 1
        while (found := client.get_experiment_by_name(called)) is not None:
            if found.lifecycle_stage == "active":
                return str(found.experiment_id)
            number += 1
            called = f"{name}-{number}"
        artifacts = (self._run.home / "mlartifacts").as_uri() if local else None
        return str(client.create_experiment(called, artifacts))

    def _say_settings(self, client: Any) -> None:
        """The configuration as parameters. MLflow's never change: what a resume changed becomes a tag."""
        said = client.get_run(self._id).data.params
        wanted = {_name(name): _text(value) for name, value in flat(dict(self._run.settings))}
        new = [Param(name, value) for name, value in wanted.items() if name not in said]
        for first in range(0, len(new), _PARAMETERS):
            client.log_batch(self._id, params=new[first : first + _PARAMETERS])
        changed = {name: value for name, value in wanted.items() if said.get(name, value) != value}
        tags = [RunTag(_name(f"tutti.resumed.{name}"), value) for name, value in changed.items()]
        if tags:
            client.log_batch(self._id, tags=tags)


def _name(text: str) -> str:
    """`text` as MLflow allows names: `validation/ndcg@10` becomes `validation/ndcg_at_10`. One that it does not allow
    would have it refuse everything that comes with it."""
    allowed = re.sub(r"[^/\w.\- ]", "_", text.replace("@", "_at_"))
    return posixpath.normpath(allowed[:_LONGEST_NAME]).lstrip("./") or "_"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:_LONGEST]


@contextmanager
def _alone(run: TrackedRun, local: bool) -> Iterator[None]:
    """Runs that begin side by side make one database, not each its own half of it."""
    if not local:
        yield
        return
    descriptor = os.open(run.home / ".mlflow.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
