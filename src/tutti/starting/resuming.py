"""Whether a run may start, or go on, as its configuration says."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

from tutti.config import Config, load_config, with_settings
from tutti.core.errors import CheckpointError, ConfigError
from tutti.core.hold import held
from tutti.core.rundir import RunDirectory
from tutti.observe import check_trackers
from tutti.observe.alerts import receivers_of
from tutti.train.checkpoints.retention import entries
from tutti.train.rehearsal import sweep_rehearsal


def check_run(run: RunDirectory, config: Config, resume: bool) -> Config:
    """`config` as run `run` goes by it. Raises a TuttiError where it may not start, or go on so."""
    receivers_of(config.alerts.model_dump())  # whose addresses may stand in the environment
    check_trackers(config.trackers)
    if not resume:
        run.refuse_existing()
        return config
    run.require()
    with held(run.path, "training there"):
        sweep_rehearsal(run)  # that another trains there is said now, not when everything is prepared
    former = load_config(run.config)
    merged = continued(config, former)
    for name in _FIXED:
        new, old = (attrgetter(name)(whole) for whole in (merged, former))
        if new != old:
            raise CheckpointError(
                f"run '{run.name}' was started with {name} = {old}, not {new}",
                "leave that as it was, or start a new run with name=OTHER",
            )
    return merged


#: What a run is: with another value, what was learnt so far is of no use, or samples would be lost or seen twice.
_FIXED = (
    *("model.size", "model.path", "model.config", "data.sequence", "recipe"),
    *("train.batch", "train.optimizer", "train.seed", "train.average", "train.batch_warmup"),
)
#: What `recipe: auto` chooses, with its defaults.
_CHOSEN_BY_RECIPE = {"train": {"average": 0.0}, "regularise": {"r_drop": 0.0}}


def continued(config: Config, former: Config) -> Config:
    """`config` for a resume: what it leaves to us stays as it was, but for what follows from the machines, from another
    policy or from other epochs.

    Raises:
        ConfigError: with what was chosen before, it cannot be.
    """
    chosen = former.model_dump()
    if chosen["train"]["head_rate"] == "auto":  # begun when there was no such thing
        chosen["train"]["head_rate"] = 1.0
    wanted = config.model_dump()

    def keep(new: Any, old: Any) -> Any:
        if isinstance(new, dict) and isinstance(old, dict):
            return {key: keep(value, old.get(key)) for key, value in new.items()}
        return old if new == "auto" else new

    merged = keep(wanted, chosen)
    merged["replicas"] = wanted["replicas"]
    merged["sync"] = _agreement(merged["sync"], wanted["sync"], chosen["sync"])
    merged["train"]["micro_batch"] = wanted["train"]["micro_batch"]
    merged["memory"] = wanted["memory"]
    if wanted["recipe"] == "auto":
        for section, defaults in _CHOSEN_BY_RECIPE.items():
            left = {key for key, default in defaults.items() if wanted[section][key] == default}
            merged[section] |= {key: chosen[section][key] for key in left}
    # Of the same text in the same batches, as many epochs give as many steps.
    if wanted["train"]["epochs"] is not None:
        merged["train"]["steps"] = "auto"
    try:
        return with_settings(config, merged)
    except ConfigError as error:
        raise ConfigError(
            f"run '{former.name}' cannot go on so: {error.problem}",
            "what it was started with stands in its config.yaml; start a new run with name=OTHER",
        ) from None


def _agreement(kept: dict[str, Any], wanted: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The section `sync`: `kept`, but for what was chosen for another policy."""
    if kept["policy"] != chosen["policy"]:
        return wanted
    for key in ("membership", "implementation"):  # follow from the machines, and from the rest of the section
        kept[key] = wanted[key]
    if wanted["policy"] == "auto":  # what is of some policies only is as it was with the one that was chosen
        kept |= {key: chosen[key] for key in ("fragments", "merge", "staleness")}
    if kept["staleness"] != chosen["staleness"]:
        kept["delay_compensation"] = wanted["delay_compensation"]
    return kept


def refuse_other_data(run: RunDirectory, fingerprint: str) -> None:
    """Raise CheckpointError where the newest checkpoint of `run` is of other data than `fingerprint` names."""
    saved = (entry.manifest for entry in entries(run.checkpoints) if entry.manifest is not None)
    newest = next(saved, None)
    if newest is not None and newest.meta["identity"]["data"] != fingerprint:
        raise text_has_changed(run.path)


def text_has_changed(run: Path) -> CheckpointError:
    """The refusal of a text that is not the one `run` was trained on."""
    return CheckpointError(
        f"the text of {run} has changed since it was trained",
        "restore the text, or train anew under another name",
    )
