"""What is tried next and what is pruned: as plain Optuna would, whatever was killed in between."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tutti.config import Choice, Dimension, Range
from tutti.core.errors import ConfigError, RunError
from tutti.search.directory import SearchDirectory
from tutti.search.study import Study, Trial

SPACE: list[Dimension] = [
    Range("train.learning_rate", 1e-5, 1e-2, log=True, whole=False),
    Range("train.warmup", 1, 50, log=False, whole=True),
    Choice("tune.rank", (4, 8, 16)),
]
THEIRS = {
    "train.learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "train.warmup": IntDistribution(1, 50),
    "tune.rank": CategoricalDistribution((4, 8, 16)),
}
FIRST = {"train.learning_rate": 1e-3, "train.warmup": 5, "tune.rank": 8}


def value_of(settings: dict[str, Any]) -> float:
    """Best at a rate of 3e-4 and a warm-up of 20."""
    return -abs(math.log(settings["train.learning_rate"] / 3e-4)) - abs(settings["train.warmup"] - 20) / 50


def make(path: Path, seed: int = 3) -> Study:
    study = Study.create(path, SPACE, seed, larger=True)
    study.begin(FIRST)
    return study


def go_on(study: Study, until: int) -> list[dict[str, Any]]:
    """Trials up to number `until`: every fifth fails, every seventh is pruned."""
    while len(study.records()) < until:
        trial = study.ask()
        if trial.number % 5 == 4:
            study.conclude(trial, "failed")
        elif trial.number % 7 == 6:
            trial.report(3, value_of(trial.settings) - 1)
            study.conclude(trial, "pruned")
        else:
            study.conclude(trial, "complete", value_of(trial.settings))
    return [record.settings for record in study.records()]


def test_the_first_trial_is_the_users_and_the_rest_is_what_plain_optuna_proposes(tmp_path: Path) -> None:
    settings = go_on(make(tmp_path / "s.db"), 11)
    assert settings[0] == FIRST
    theirs = optuna.create_study(direction="maximize")
    recorded = optuna.load_study(study_name="tutti", storage=f"sqlite:///{tmp_path / 's.db'}").trials
    for number, ours in enumerate(settings):
        seed = int(np.random.SeedSequence([3, number]).generate_state(1)[0])
        theirs.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)
        if number > 0:
            assert theirs.ask(THEIRS).params == ours, number
            theirs.tell(number, state=optuna.trial.TrialState.FAIL)
            theirs = optuna.create_study(direction="maximize")  # without the trial that was only asked for
            for trial in recorded[:number]:
                theirs.add_trial(trial)
        theirs.add_trial(recorded[number])
    assert len({tuple(one.values()) for one in settings}) == 11
    assert settings == go_on(make(tmp_path / "again.db"), 11)
    assert settings[1:3] != go_on(make(tmp_path / "other.db", seed=4), 3)[1:]


def test_a_search_that_was_killed_between_any_two_calls_tries_the_same(tmp_path: Path) -> None:
    whole = go_on(make(tmp_path / "whole.db"), 9)
    path = tmp_path / "killed.db"
    make(path)
    for number in range(9):
        asked = Study.load(path, SPACE, 3).ask()
        assert asked.number == number
        del asked  # nobody will say what came of it
        study = Study.load(path, SPACE, 3)
        (left,) = study.under_way()
        assert (left.number, left.settings) == (number, whole[number])
        if number % 5 == 4:
            study.conclude(left, "failed")
        elif number % 7 == 6:
            left.report(3, value_of(left.settings) - 1)
            study.conclude(left, "pruned")
        else:
            study.conclude(left, "complete", value_of(left.settings))
    assert [record.settings for record in study.records()] == whole


def test_one_killed_while_its_settings_were_written_gets_the_same(tmp_path: Path) -> None:
    whole = go_on(make(tmp_path / "whole.db"), 8)
    study = make(tmp_path / "killed.db")
    go_on(study, 7)
    plain = optuna.load_study(study_name="tutti", storage=f"sqlite:///{tmp_path / 'killed.db'}")
    plain.ask()  # begun, and no setting of it is there yet
    (left,) = Study.load(tmp_path / "killed.db", SPACE, 3).under_way()
    assert left.settings == whole[7]


def said_behind(trial: Trial, values: list[float]) -> list[bool]:
    """Whether it had fallen behind after each of its first tenths."""
    said = []
    for tenth, value in enumerate(values, 1):
        trial.report(tenth, value)
        said.append(trial.behind)
    return said


def test_what_falls_behind_the_median_is_pruned_after_three_tenths(tmp_path: Path) -> None:
    study = make(tmp_path / "s.db")
    curves = [0.5, 0.6, 0.7, 0.8]
    for end in curves:  # these are compared with nothing: there must be four first
        trial = study.ask()
        assert said_behind(trial, [end * tenth / 10 for tenth in range(1, 10)]) == [False] * 9
        study.conclude(trial, "complete", end)
    for end in (0.4, 0.64, 0.66, 0.9):
        trial = study.ask()
        said = said_behind(trial, [end * tenth / 10 for tenth in range(1, 6)])
        behind = end < np.median(curves)
        assert said == [False, False, behind, behind, behind], end
        (again,) = Study.load(tmp_path / "s.db", SPACE, 3).under_way()
        assert again.behind == behind, "who is killed before it is stopped is stopped afterwards"
        study.conclude(trial, "pruned" if behind else "failed")
    pruned = [record for record in study.records() if record.state == "pruned"]
    assert [record.value for record in pruned] == pytest.approx([0.12, 0.192])


def test_which_settings_mattered_is_said_when_there_are_enough(tmp_path: Path) -> None:
    study = make(tmp_path / "s.db")
    for _ in range(7):
        trial = study.ask()
        study.conclude(trial, "complete", value_of(trial.settings))
    assert study.importances() is None
    for _ in range(13):
        trial = study.ask()
        study.conclude(trial, "complete", value_of(trial.settings))
    found = study.importances()
    assert found is not None and sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "train.learning_rate" and found["tune.rank"] < 0.2
    plain = optuna.load_study(study_name="tutti", storage=f"sqlite:///{tmp_path / 's.db'}")
    assert found == optuna.importance.get_param_importances(plain)


def test_a_study_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("not a database, but long enough to be taken for one\n" * 40)
    with pytest.raises(RunError, match=r"study\.db cannot be used"):
        Study.load(tmp_path / "s.db", SPACE, 0)
    with pytest.raises(RunError, match="there is no search"):
        Study.load(tmp_path / "empty.db", SPACE, 0)


def test_without_optuna_the_command_to_install_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="needs the package optuna") as caught:
        Study.create(tmp_path / "s.db", SPACE, 0, larger=True)
    assert "pip install 'tutti[tune]'" in caught.value.hint


def test_a_search_that_could_not_be_begun_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: SearchDirectory) -> None:
        raise RunError("no")

    with pytest.raises(RunError):
        SearchDirectory(tmp_path / "runs" / "s").create(fail)
    assert list((tmp_path / "runs").iterdir()) == []
