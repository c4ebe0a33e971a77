"""Several groups that train side by side and learn from each other: made sure of together, then started."""

from __future__ import annotations

from typing import Any

from tutti import models
from tutti.config import Config, count_groups, group_configs, load_config
from tutti.core.errors import CheckpointError, ConfigError
from tutti.core.rundir import RunDirectory
from tutti.core.say import printer
from tutti.data import Prepared
from tutti.starting import check_run, start_run
from tutti.supervise import GroupsSupervision, Supervision, in_started_world


def train_groups(config: Config, resume: bool, console: bool) -> dict[str, Any]:
    """An ordinary run for each group of `config`, each judged as such before any of them begins. Returns what the
    report of all of them holds.

    Raises:
        TuttiError: one clear error; a run that failed before its first step leaves no directory behind.
    """
    if in_started_world():
        raise ConfigError("groups are started by `tutti train` itself, not by torchrun", "leave torchrun out")
    run, number = RunDirectory.of(config.runs, config.name), count_groups(config)
    if not resume:
        run.refuse_existing()
    else:
        run.require()
        _check_groups(run, config, load_config(run.config))
    runs, vocabularies = [], []
    for group in group_configs(config):
        place = RunDirectory.of(group.runs, group.name)
        goes_on = resume and place.config.is_file()  # one that failed before its first step left nothing
        label = f"group {group.name} │ "
        checked = check_run(place, group, goes_on)
        resolved, prepared = start_run(
            checked, printer(console, label), continues=place if goes_on else None, groups=number
        )
        assert isinstance(prepared, Prepared), "groups of anything else are refused by the configuration"
        vocabularies.append(_entries(resolved.config, prepared))
        runs.append(Supervision(place, resolved, prepared.directory, goes_on, console, label=label))
    if len(set(vocabularies)) > 1:
        raise ConfigError(
            f"the groups' models have {', '.join(map(str, vocabularies))} entries in their vocabularies, and can "
            "only compare predictions of the same",
            "choose models with tables of one size, or set model.from_scratch: true",
        )
    return GroupsSupervision(run, config, runs, resume).execute()


def _check_groups(run: RunDirectory, config: Config, former: Config) -> None:
    """What must be as it was when groups are resumed."""
    for name, new, old in (
        ("the number of groups", count_groups(config), count_groups(former)),
        ("cooperate.exchange", config.cooperate.exchange, former.cooperate.exchange),
        ("cooperate.every", config.cooperate.every, former.cooperate.every),
    ):
        # The order of samples follows from these; weights may be exchanged as often as one likes.
        if new != old and (name != "cooperate.every" or config.cooperate.exchange == "predictions"):
            raise CheckpointError(
                f"run '{run.name}' was started with {name} = {old}, not {new}",
                "leave that as it was, or start a new run with name=OTHER",
            )


def _entries(config: Config, prepared: Prepared) -> int:
    """Entries of the model's vocabulary."""
    blueprint = models.draw_blueprint(
        config.model,
        vocabulary=prepared.vocabulary,
        sequence=config.data.sequence,
        seed=config.train.seed,
        end_token=prepared.end_token,
    )
    return int(blueprint.architecture.get_text_config(decoder=True).vocab_size)
