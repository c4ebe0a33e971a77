"""What was tried and what to try next: Optuna, behind a few calls.

Each trial has a sampler of its own, seeded by the search's seed and the trial's number. So what is tried next follows
from the seed and from what was found so far, and from nothing else: a search that was killed and resumed makes the same
trials as one that was not.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tutti.config import Choice, Dimension, Plain, Range
from tutti.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    import optuna

_NAME = "tutti"
#: For a lock on the file that somebody else holds, such as a backup.
_PATIENCE_SECONDS = 60
#: Trials that are drawn at random before what they found guides the others.
RANDOM_TRIALS = 6
#: A trial is pruned when it is worse than half of those that came to their end, at the same point of their length. So
#: many must have, and so many tenths of it must be over: high learning rates look bad until they fall.
PRUNING_TRIALS, PRUNING_TENTHS = 4, 3
#: Finished trials from which it can be said which settings mattered.
_WEIGHED_TRIALS = 8


@dataclass(frozen=True)
class Record:
    """What is known of a trial. `state`: `running`, `complete`, `pruned` or `failed`; `notes`: of `Trial.note`."""

    number: int
    state: str
    value: float | None
    settings: dict[str, Plain]
    notes: dict[str, Any]


class Trial:
    """A trial under way."""

    def __init__(self, trial: optuna.Trial, space: Sequence[Dimension]) -> None:
        self._trial = trial
        self.number = trial.number
        self._space = space
        self.settings: dict[str, Plain] = {one.key: _suggest(trial, one) for one in space}
        self._reported = set(trial.study.trials[trial.number].intermediate_values)
        #: Whether it has fallen behind (of what was reported, the last decides).
        self.behind = bool(self._reported) and trial.should_prune()

    def report(self, tenth: int, value: float) -> None:
        """Note its `value` when so many tenths of it are over, unless that was done."""
        if tenth in self._reported or self.behind:
            return
        self._reported.add(tenth)
        with _database():
            self._trial.report(value, tenth)
            self.behind = self._trial.should_prune()

    def note(self, **notes: Any) -> None:
        """Keep JSON values with it."""
        with _database():
            for key, value in notes.items():
                self._trial.set_user_attr(key, value)


class Study:
    """The SQLite study at `path`. `larger`: larger values are better."""

    def __init__(self, study: optuna.Study, space: Sequence[Dimension], seed: int) -> None:
        self._study, self._space, self._seed = study, space, seed

    @classmethod
    def create(cls, path: Path, space: Sequence[Dimension], seed: int, *, larger: bool) -> Study:
        """A new one.

        Raises:
            RunError: it cannot be written.
        """
        optuna = load_optuna()
        with _database():
            study = optuna.create_study(
                storage=_storage(path),
                study_name=_NAME,
                direction="maximize" if larger else "minimize",
                pruner=make_pruner(),
            )
        return cls(study, space, seed)

    @classmethod
    def load(cls, path: Path, space: Sequence[Dimension], seed: int) -> Study:
        """The one that is there.

        Raises:
            RunError: it cannot be read.
        """
        optuna = load_optuna()
        try:
            with _database():
                study = optuna.load_study(storage=_storage(path), study_name=_NAME, pruner=make_pruner())
        except KeyError as error:
            raise RunError(f"there is no search in {path}", "delete its directory, and begin anew") from error
        return cls(study, space, seed)

    @property
    def notes(self) -> dict[str, Any]:
        """What `note` was told."""
        with _database():
            return dict(self._study.user_attrs)

    def note(self, **notes: Any) -> None:
        """Keep JSON values with the study."""
        with _database():
            for key, value in notes.items():
                self._study.set_user_attr(key, value)

    def begin(self, first: Mapping[str, Plain] | None) -> None:
        """Let `first` be the settings of the first trial, if there was none yet."""
        with _database():
            if first is not None and not self._study.trials:
                self._study.enqueue_trial(dict(first))

    def ask(self) -> Trial:
        """The next trial."""
        with _database():
            waiting = [t.number for t in self._study.trials if t.state.name == "WAITING"]
            number = min(waiting, default=len(self._study.trials))
            self._study.sampler = make_sampler(self._seed, number)
            return Trial(self._study.ask(), self._space)

    def under_way(self) -> list[Trial]:
        """Trials that were begun and never ended, by somebody who is gone."""
        optuna = load_optuna()
        found = []
        with _database():
            for frozen in self._study.trials:
                if frozen.state == optuna.trial.TrialState.RUNNING:
                    self._study.sampler = make_sampler(self._seed, frozen.number)
                    found.append(Trial(optuna.Trial(self._study, frozen._trial_id), self._space))
        return found

    def conclude(self, trial: Trial, state: str, value: float | None = None) -> None:
        """Say what came of `trial`: `complete` with a value, `pruned` or `failed`."""
        states = load_optuna().trial.TrialState
        ends = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        with _database():
            self._study.tell(trial.number, value, state=ends[state])

    def records(self) -> list[Record]:
        """All trials that were begun, in order."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        with _database():
            return [
                Record(t.number, names[t.state.name], t.value, dict(t.params), dict(t.user_attrs))
                for t in self._study.trials
                if t.state.name in names
            ]

    def importances(self) -> dict[str, float] | None:
        """Shares of what made the difference, by setting, the largest first; None: too few trials to say.

        PED-ANOVA: Watanabe et al. 2023, arXiv 2304.10255.
        """
        optuna = load_optuna()
        complete = [record.value for record in self.records() if record.state == "complete"]
        if len(complete) < _WEIGHED_TRIALS or len(set(complete)) < 2 or len(self._space) < 2:
            return None
        found = optuna.importance.get_param_importances(self._study)
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def load_optuna() -> Any:
    """The library, told to be quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"`tutti tune` needs the package {error.name}", "install it: pip install 'tutti[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def make_sampler(seed: int, number: int) -> Any:
    """The sampler of trial `number`: TPE (Bergstra et al. 2011), of all settings together."""
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return load_optuna().samplers.TPESampler(seed=mixed, n_startup_trials=RANDOM_TRIALS, multivariate=True)


def make_pruner() -> Any:
    """The median rule (Golovin et al. 2017)."""
    return load_optuna().pruners.MedianPruner(
        n_startup_trials=PRUNING_TRIALS, n_warmup_steps=PRUNING_TENTHS, n_min_trials=PRUNING_TRIALS
    )


def _suggest(trial: optuna.Trial, one: Dimension) -> Plain:
    if isinstance(one, Choice):
        value: Plain = trial.suggest_categorical(one.key, one.values)
        return value
    assert isinstance(one, Range)
    if one.whole:
        return trial.suggest_int(one.key, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(one.key, one.low, one.high, log=one.log)


def _storage(path: Path) -> Any:
    """The file at `path`, which others may read and write meanwhile: for as long as they hold it, it is waited for."""
    from optuna.storages import RDBStorage

    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": _PATIENCE_SECONDS}})


@contextmanager
def _database() -> Iterator[None]:
    """Errors of the database are the user's to mend: a full disk, a place that is read-only, a file that is none."""
    optuna = load_optuna()
    import sqlalchemy

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        words = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"the search's study.db cannot be used: {words}",
            "see that the disk has room and may be written to, then go on with --resume",
        ) from error
