"""What is made sure of before a search's first trial: that its configuration can be searched, and what is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutti.config import (
    Config,
    Dimension,
    Plain,
    count_groups,
    dump_config,
    load_config,
    search_space,
)
from tutti.core.errors import CheckpointError, ConfigError, DataError, LaunchError
from tutti.core.files import write_text_atomically
from tutti.core.say import Say
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples
from tutti.hardware import usable_cores
from tutti.search.directory import SearchDirectory
from tutti.search.goal import Goal
from tutti.search.propose import first_settings, propose
from tutti.search.study import Study, load_optuna
from tutti.starting import start_run, text_has_changed
from tutti.supervise import in_started_world

#: What may be another when a search goes on: it changes no trial's result.
_MAY_CHANGE = (
    *("runs", "search", "replicas", "each", "layout", "memory", "checkpoint", "watch"),
    *("alerts", "trackers"),
)


@dataclass(frozen=True)
class Beginning:
    """`config`: the user's, without what is searched; `base`: that of every trial, but for its settings; `first`: the
    settings of the first trial, if they are those of `config`; `reasons`: why a key is searched, where we chose it."""

    config: Config
    base: Config
    goal: Goal
    space: list[Dimension]
    reasons: dict[str, str]
    first: dict[str, Plain] | None
    data: str

    def store(self, place: SearchDirectory, planned: int) -> None:
        """Write what must be known to go on."""
        said = {one.key: one.as_setting() for one in self.space}
        write_text_atomically(place.config, dump_config(self.config.model_copy(update={"search": said})))
        study = Study.create(place.study, self.space, self.config.train.seed, larger=self.goal.larger)
        precision = self.base.train.precision
        study.note(trials=planned, reasons=self.reasons, precision=precision, data=self.data)
        study.begin(self.first)


def check(config: Config, parallel: int, trials: int | None) -> None:
    """Refuse what is no search.

    Raises:
        TuttiError: says what it is.
    """
    load_optuna()
    if in_started_world():
        raise LaunchError(
            "a search starts its trials itself, and torchrun started this one",
            "run `tutti tune` without torchrun",
        )
    if config.model.python is not None:
        raise ConfigError("model.python belongs to tutti.fit", "give model a size, a path or a config")
    if count_groups(config) > 1:
        raise ConfigError(
            f"a search is of one model, and groups: {count_groups(config)} are several that teach each other",
            "search for the settings of one (groups=1), then train the groups with them",
        )
    for name, number in (("parallel", parallel), ("trials", trials)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}, and should be 1 or more", "leave it out, or say how many")


def begin(config: Config, parallel: int, say: Say, study: Study | None = None) -> Beginning:
    """What a search of `config` is, with so many trials at once. `study`: it goes on.

    Raises:
        TuttiError: `config` cannot be trained, there is nothing to judge it by, or a setting cannot be.
    """
    notes = {} if study is None else study.notes
    plain = config.model_copy(update={"search": {}})
    # What is measured as fastest may be another in each run; trials must not differ by it.
    pinned = _with_precision(plain, notes["precision"]) if notes else plain
    resolved, prepared = start_run(pinned, say, groups=parallel)
    if resolved.config.sync.undecided:
        raise ConfigError(
            "sync: auto is measured anew before every run, so trials would differ by more than their settings",
            "say what to take, for example sync=allreduce sync.codec=bf16",
        )
    if not _has_validation(config, prepared):
        raise DataError(
            "there is no validation part to judge settings by",
            "set data.validation above 0, or give data.validation_source",
        )
    if notes and notes["data"] != prepared.fingerprint:
        raise text_has_changed(SearchDirectory.of(config).path)
    base = _with_precision(plain, resolved.config.train.precision)
    base = base.model_copy(update={"replicas": resolved.config.replicas})
    # Judged again: now it is known how many workers share a batch.
    space = search_space(base.model_copy(update={"search": config.search}))
    reasons: dict[str, str] = notes.get("reasons", {})
    if not space:
        proposals = propose(plain, resolved.config, prepared)
        space = [proposal.dimension for proposal in proposals]
        reasons = {proposal.dimension.key: proposal.reason for proposal in proposals}
    goal = Goal.of(config)
    first = first_settings(plain, resolved.config, prepared, space)
    said = f"for the best {goal.name}" if goal.larger else f"for the smallest {goal.name}"
    say(f"searching {said}, by:")
    for one in space:
        why = f"   ({reasons[one.key]})" if one.key in reasons else ""
        say(f"  {one.key:<{max(len(other.key) for other in space)}}  {one}{why}")
    workers = resolved.config.replicas
    assert isinstance(workers, int)
    say(_shares(parallel, workers * config.layout.ranks, resolved.threads))
    return Beginning(plain, base, goal, space, reasons, first, prepared.fingerprint)


def _shares(parallel: int, workers: int, threads: int) -> str:
    cores = usable_cores()
    each = f"{workers} {'worker' if workers == 1 else 'workers'} of {threads} {'thread' if threads == 1 else 'threads'}"
    if parallel == 1:
        return f"one trial at a time, with {each} on {cores} cores"
    more = "; more than there are cores, so they wait for each other" if parallel * workers > cores else ""
    return f"{parallel} trials at a time, each with {each}, on {cores} cores{more}"


def agreed(config: Config, place: SearchDirectory) -> Config:
    """`config` for a search that goes on at `place`, with what was searched there.

    Raises:
        TuttiError: it differs from what the trials that are there were made with.
    """
    former = load_config(place.config)
    if not config.search:
        config = config.model_copy(update={"search": former.search})
    elif search_space(config) != search_space(former):
        raise CheckpointError(
            f"the search at {place.path} tries other values: search = {former.search}",
            "leave that as it was, or begin another search with name=OTHER",
        )
    new, old = config.model_dump(exclude={*_MAY_CHANGE}), former.model_dump(exclude={*_MAY_CHANGE})
    for section in new:
        if new[section] != old[section]:
            raise CheckpointError(
                _difference(place, section, new[section], old[section]),
                "leave that as it was, or begin another search with name=OTHER",
            )
    return config


def _difference(place: SearchDirectory, section: str, new: Any, old: Any) -> str:
    if isinstance(new, dict):
        key = next(key for key in new if new[key] != old[key])
        section, new, old = f"{section}.{key}", new[key], old[key]
    return f"the search at {place.path} was begun with {section} = {old}, not {new}"


def _with_precision(config: Config, precision: str) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def _has_validation(config: Config, prepared: Prepared | PreparedExamples) -> bool:
    if isinstance(prepared, PreparedExamples):
        return prepared.rows("validation") > 0
    return prepared.samples("validation", config.data.sequence) > 0
