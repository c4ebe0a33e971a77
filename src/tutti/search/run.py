"""One trial as an ordinary run: begun or resumed, followed through its events, and cleared away when it is a loser."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tutti.config import Config, Plain, with_settings
from tutti.core.rundir import RunDirectory
from tutti.observe import summarise, write_report
from tutti.observe.tail import Tail
from tutti.search.goal import Goal
from tutti.search.study import Trial
from tutti.starting import check_run, start_run
from tutti.supervise import Supervision
from tutti.train.checkpoints import newest_valid

#: In how many parts of its length a trial is compared with others.
TENTHS = 10


@dataclass
class TrialRun:
    """A trial that trains. `slot`: its place among those that train at the same time."""

    trial: Trial
    run: RunDirectory
    slot: int
    resumed: bool
    _supervision: Supervision | None = None
    _steps: int = 1
    report: dict[str, Any] | None = None
    error: BaseException | None = None
    _told: int = 0
    _tail: Tail = field(init=False)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self._tail = Tail(self.run.path)

    @classmethod
    def start(cls, trial: Trial, run: RunDirectory, base: Config, slot: int, parallel: int) -> TrialRun:
        """Begin `trial` of `base` as `run`, or go on with what is there of it.

        Raises:
            TuttiError: it cannot be trained so.
        """
        config = with_settings(base, settings_of(run, trial.settings))
        state = state_of(run)
        started = cls(trial, run, slot, resumed=state != "none")
        if state == "finished":
            started.report = write_report(run.path)
            started._steps = int(started.report["steps_planned"])
            return started
        resolved, prepared = start_run(
            check_run(run, config, started.resumed),
            lambda _: None,
            continues=run if started.resumed else None,
            groups=parallel,
        )
        if not started.resumed:
            run.create()
        workers = resolved.config.replicas
        assert isinstance(workers, int) and isinstance(resolved.config.train.steps, int)
        started._steps = resolved.config.train.steps
        started._supervision = Supervision(
            run,
            resolved,
            prepared.directory,
            resume=started.resumed,
            console=False,
            ranks_before=slot * workers * config.layout.ranks,
        )
        started._thread = threading.Thread(target=started._execute, name=f"trial-{trial.number}", daemon=True)
        started._thread.start()
        return started

    def _execute(self) -> None:
        assert self._supervision is not None
        try:
            self.report = self._supervision.execute()
        except BaseException as error:
            self.error = error

    @property
    def over(self) -> bool:
        """Whether it has come to its end, whichever."""
        return self._thread is None or not self._thread.is_alive()

    def news(self, goal: Goal) -> Iterator[tuple[int, float]]:
        """Validations since the last call: tenths of its length that were over, and the value."""
        for event in self._tail.poll():
            if event["kind"] == "validation" and (value := goal.at(event)) is not None:
                tenth = round(TENTHS * int(event["step"]) / self._steps)
                if tenth < TENTHS:
                    yield tenth, value

    def stop(self, times: int) -> None:
        """See that it has been asked so many times to stop: once to save, twice to die."""
        while self._supervision is not None and self._supervision.launched and self._told < min(times, 2):
            self._told += 1
            self._supervision.stop()


def settings_of(run: RunDirectory, settings: Mapping[str, Plain]) -> dict[str, Plain]:
    """`settings` of a trial, and what makes it the run `run`."""
    return {**settings, "name": run.name, "runs": str(run.path.parent)}


def state_of(run: RunDirectory) -> str:
    """`finished`, `interrupted` (it can go on), or `none`; what never saved anything is taken away."""
    if run.config.is_file() and summarise(run.path)["state"] == "finished":
        return "finished"
    if run.config.is_file() and newest_valid(run.checkpoints) is not None:
        return "interrupted"
    if run.path.exists():
        shutil.rmtree(run.path)
    return "none"


def clear(run: RunDirectory) -> None:
    """Leave of a loser what says how it went: no weights."""
    for directory in (run.checkpoints, run.export):
        shutil.rmtree(directory, ignore_errors=True)
