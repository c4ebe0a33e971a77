"""A model from which parts were taken out learns again, from its labels and from the model that it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tutti.compress.subject import Subject
from tutti.config import load_config
from tutti.config.schema import Config
from tutti.core import RunDirectory
from tutti.core.errors import RunError
from tutti.models import export_model
from tutti.starting import check_run, start_run
from tutti.supervise import Supervision
from tutti.train.checkpoints import newest_valid
from tutti.trained import load_trained

#: Beside the model as it was before: what that was made from.
_MADE_FROM = "made-from.json"


def recover(
    subject: Subject, model: PreTrainedModel, name: str, steps: int | None, console: bool
) -> PreTrainedModel:
    """`model` after `steps` of training (None: as many as the run had), a run of its own: `recovered/NAME` of the run.

    One that has ended is taken as it is, and one that was interrupted goes on.

    Raises:
        TuttiError: it cannot be trained, or what is there was another training, or of another state of the run.
    """
    runs = subject.run / "recovered"
    place, before = RunDirectory(runs / name), runs / f"{name}-before"
    config = _config(subject, place, before, steps)
    state = _state_of(place, config)
    if state != "none":
        _require_same(place, before, subject)
    if state == "finished":
        return _model_of(place)
    resume = state == "interrupted"
    if not resume:
        made_from = {_MADE_FROM: json.dumps(subject.made_from())}
        export_model(model, subject.tokenizer_directory, before, beside=made_from)
    resolved, prepared = start_run(
        check_run(place, config, resume), lambda _: None, continues=place if resume else None
    )
    if not resume:
        place.create()
    report = Supervision(place, resolved, prepared.directory, resume=resume, console=console).execute()
    if report["state"] != "finished":
        raise KeyboardInterrupt
    return _model_of(place)


def _state_of(place: RunDirectory, config: Config) -> str:
    """Whether the run at `place` is finished, interrupted or not there; what never saved anything is taken away.

    Raises:
        RunError: it was a training of other steps.
    """
    if not place.config.is_file():
        return "none"
    if load_config(place.config).train.steps != config.train.steps:
        raise RunError(
            f"{place.path} is there, and was a training of other steps", "delete it, and compress again"
        )
    if newest_valid(place.checkpoints) is None:
        shutil.rmtree(place.path)
        return "none"
    try:
        state = json.loads(place.report_json.read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError):
        state = ""
    return "finished" if state == "finished" else "interrupted"


def _require_same(place: RunDirectory, before: Path, subject: Subject) -> None:
    """Raise RunError where the training at `place` began with what another state of the run was cut to."""
    try:
        made_from = json.loads((before / _MADE_FROM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made_from = {}
    if any(made_from.get(key) != value for key, value in subject.made_from().items() if key != "run"):
        raise RunError(
            f"{place.path} is there, and began with the model of step {made_from.get('step', 'unknown')} of "
            f"{subject.run}; now it is that of step {subject.step}",
            "delete it, and compress again",
        )


def _model_of(place: RunDirectory) -> PreTrainedModel:
    model = load_trained(place.path).job.objective.model
    assert isinstance(model, PreTrainedModel)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _config(subject: Subject, place: RunDirectory, before: Path, steps: int | None) -> Config:
    """Of the run, but for what belongs to its length, to adapters and to a second pass beside the teacher's."""
    config = subject.config
    changed: dict[str, dict[str, Any]] = {
        "model": {"path": str(before), "size": None, "config": None, "from_scratch": False},
        "train": {"warmup": "auto", "head_rate": "auto"} | ({} if steps is None else {"steps": steps}),
        "regularise": {"r_drop": 0.0, "adversarial": 0.0},
        "evaluate": {"every": "auto"},
        "checkpoint": {"every": "auto"},
    }
    if config.tune.method != "full":  # what a part of it, or something beside it, learned at
        changed["train"]["learning_rate"] = "auto"
    if config.task.contrast:  # it is a classifier now, and has a head
        changed["task"] = {"contrast": False, "together": None}
        changed["train"] |= {"batch": "auto", "micro_batch": "auto"}
        changed["evaluate"]["samples"] = "auto"
    values = config.model_dump() | {"recipe": "plain"}
    for section, new in changed.items():
        values[section] |= new
    values |= {"name": place.name, "runs": str(place.path.parent), "tune": {}}
    if config.remember.ewc:  # what it was is the teacher now
        kept = config.remember.model_dump() | {"ewc": 0.0}
        values["remember"] = kept if config.remember.replay else {}
    # A model that writes and is cut has no teachers: it learns from its text alone.
    layout = config.layout
    cut = not config.task.asks and layout.tensor * layout.pipeline * layout.context > 1
    values["distil"] = {} if cut else {"teacher": str(subject.run.absolute())}
    if not config.task.asks:  # budgets count no teachers
        values["memory"]["budget"] = None
    return Config.model_validate(values)
