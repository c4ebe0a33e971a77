"""A search from its first trial to its table: asks what to try, trains it, prunes what falls behind, keeps the best."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tutti.config import Config, Plain
from tutti.core.errors import RunError, TrainingError, TuttiError
from tutti.core.say import Say
from tutti.launch.agent import hidden_main
from tutti.launch.server import start_server
from tutti.launch.signals import stop_requests
from tutti.observe import words
from tutti.search.outcome import Outcome, as_words
from tutti.search.run import TENTHS, TrialRun, clear
from tutti.search.study import Study, Trial

_LOOK_SECONDS = 0.1
#: A trial that goes on says so after so long.
_TELL_SECONDS = 30.0


@dataclass
class Session:
    """One command's part of a search. `base`: of every trial, but for its settings. `planned`: trials of all commands
    together; `parallel`: at the same time; `first`: what the user's own settings come to."""

    base: Config
    study: Study
    outcome: Outcome
    planned: int
    parallel: int
    first: dict[str, Plain] | None
    say: Say
    _running: dict[int, TrialRun] = field(default_factory=dict)
    _left: list[Trial] = field(default_factory=list)
    _stops: int = 0
    _broken: TuttiError | None = None
    _told: dict[int, float] = field(default_factory=dict)

    def execute(self) -> dict[str, Any]:
        """Make the trials that are missing, and return the content of `search.json`.

        Raises:
            TuttiError: no trial came to its end, or the directory cannot be used any more.
        """
        self._left = self.study.under_way()
        self._clear_losers()
        start_server()
        # Outermost: what the trials' launchers put back in turn is this.
        with stop_requests(self._ask_to_stop), hidden_main():
            while self._fill() or self._running:
                for run in list(self._running.values()):
                    self._attend(run)
                time.sleep(_LOOK_SECONDS)
        return self._end()

    def _ask_to_stop(self) -> None:
        """The first request to stop is passed on to every trial, the second kills."""
        self._stops += 1

    # Trials --------------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Begin a trial, if there is one and room for it; whether it did."""
        if self._stops or self._broken or len(self._running) == self.parallel:
            return False
        if self._left:
            trial = self._left.pop(0)
        elif len(self.study.records()) < self.planned:
            trial = self.study.ask()
        else:
            return False
        self._start(trial)
        return True

    def _start(self, trial: Trial) -> None:
        place, number = self.outcome.place, trial.number
        given = ", as the file says" if trial.settings == self.first else ""
        self.say(f"trial {number} ({number + 1} of {self.planned}){given}: {as_words(trial.settings)}")
        used = {run.slot for run in self._running.values()}
        slot = next(slot for slot in range(self.parallel) if slot not in used)
        try:
            run = TrialRun.start(trial, place.trial(number), self.base, slot, self.parallel)
        except RunError as error:
            self._broken = error
        except TuttiError as error:
            self._conclude(trial, "failed", reason=error.problem)
        else:
            if run.resumed:
                self.say(f"trial {number}: goes on from where it was")
            self._running[number], self._told[number] = run, time.monotonic()

    def _attend(self, run: TrialRun) -> None:
        over, trial, goal = run.over, run.trial, self.outcome.goal  # asked first: then all it wrote is there
        for tenth, value in run.news(goal):
            trial.report(tenth, value)
            if time.monotonic() - self._told[trial.number] >= _TELL_SECONDS:
                self._told[trial.number] = time.monotonic()
                self.say(
                    f"trial {trial.number}: {goal.name} {words.figure(value)} after {tenth / TENTHS:.0%} of its steps"
                )
        run.stop(max(self._stops + (self._broken is not None), trial.behind))
        if over:
            del self._running[trial.number]
            self._judge(run)

    def _judge(self, run: TrialRun) -> None:
        """What came of a trial that is over."""
        trial, goal = run.trial, self.outcome.goal
        report = run.report or {}
        figures = {"step": report.get("validation_step"), "seconds": report.get("wall_seconds")}
        if trial.behind:
            self._conclude(trial, "pruned", **figures)
        elif isinstance(run.error, RunError):
            self._broken = self._broken or run.error
        elif run.error is not None:
            said = run.error.problem if isinstance(run.error, TuttiError) else repr(run.error)
            self._conclude(trial, "failed", reason=said.splitlines()[0], **figures)
        elif report.get("state") != "finished":
            if not (self._stops or self._broken):
                self._conclude(trial, "failed", reason="somebody else interrupted it", **figures)
            else:
                self.say(
                    f"trial {trial.number}: stopped at step {report.get('steps')}; --resume goes on with it"
                )
        elif (value := goal.reached(report)) is None:
            self._conclude(trial, "failed", reason=f"it has no {goal.name} that is a number", **figures)
        else:
            self._conclude(trial, "complete", value, **figures)

    def _conclude(self, trial: Trial, state: str, value: float | None = None, **notes: Any) -> None:
        before = self.outcome.best(self.study.records())
        trial.note(**{key: note for key, note in notes.items() if note is not None})
        self.study.conclude(trial, state, value)
        self._clear_losers()
        self.outcome.write(self.study, self.planned, "running")
        goal, took = self.outcome.goal, f" ({words.seconds(notes.get('seconds'))})"
        if state == "failed":
            self.say(f"trial {trial.number}: failed: {notes['reason']}")
        elif state == "pruned":
            record = self.study.records()[trial.number]
            figure = words.figure(record.value)
            self.say(f"trial {trial.number}: pruned at {goal.name} {figure}: behind half of the others{took}")
        else:
            assert value is not None
            best = before is not None and goal.better(value, before.value)
            said = ", the best so far" if best else ""
            self.say(f"trial {trial.number}: {goal.name} {words.figure(value)}{said}{took}")

    def _clear_losers(self) -> None:
        """Weights are kept of the best, and of trials under way."""
        records = self.study.records()
        best = self.outcome.best(records)
        for record in records:
            if record.state != "running" and record is not best:
                clear(self.outcome.place.trial(record.number))

    def _end(self) -> dict[str, Any]:
        if self._broken is not None:
            raise RunError(self._broken.problem, "mend that, then go on with --resume") from self._broken
        records = self.study.records()
        if any(record.state == "running" for record in records) or len(records) < self.planned:
            return self.outcome.write(self.study, self.planned, "interrupted")
        if self.outcome.best(records) is None:
            self.outcome.write(self.study, self.planned, "failed")
            first = next(record for record in records if record.state == "failed")
            raise TrainingError(
                f"all {words.plural(len(records), 'trial')} failed; trial {first.number}: {first.notes.get('reason')}",
                f"see that `tutti train` works; every reason is in {self.outcome.place.report_markdown}",
            )
        return self.outcome.write(self.study, self.planned, "finished")
