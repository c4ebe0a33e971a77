"""A model from which parts were taken out learns again, from its labels and from the model that it was."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from tutti.compress.subject import Subject
from tutti.config.schema import Config
from tutti.config.task import DistilConfig, TuneConfig
from tutti.core import RunDirectory
from tutti.core.errors import RunError
from tutti.models import export_model
from tutti.starting import check_run, start_run
from tutti.supervise import Supervision
from tutti.train.labelled import LabelledJob
from tutti.trained import load_trained


def recover(
    subject: Subject, model: PreTrainedModel, name: str, steps: int | None, console: bool
) -> PreTrainedModel:
    """`model` after `steps` of training (None: as many as the run had), a run of its own: `recovered/NAME` of the run.

    One that has ended is taken as it is.

    Raises:
        TuttiError: it cannot be trained.
    """
    runs = subject.run / "recovered"
    place = RunDirectory(runs / name)
    config = _config(subject, place, runs / f"{name}-before", steps)
    if place.config.is_file():
        ended = load_ended(place, config)
        if ended is not None:
            return ended
    export_model(model, subject.job.prepared.tokenizer_directory, runs / f"{name}-before")
    resolved, prepared = start_run(check_run(place, config, False), lambda _: None)
    place.create()
    report = Supervision(place, resolved, prepared.directory, resume=False, console=console).execute()
    if report["state"] != "finished":
        raise KeyboardInterrupt
    return _model_of(place)


def load_ended(place: RunDirectory, config: Config) -> PreTrainedModel | None:
    """The model of the run at `place`, if that has ended and did what `config` says.

    Raises:
        RunError: it has not, or did something else.
    """
    trained = load_trained(place.path)
    if trained.config.train.steps != config.train.steps or not place.report_json.is_file():
        raise RunError(
            f"{place.path} is there, and was another training of this recipe",
            "delete it, and compress again",
        )
    return _model_of(place)


def _model_of(place: RunDirectory) -> PreTrainedModel:
    job = load_trained(place.path).job
    assert isinstance(job, LabelledJob)
    model = job.objective.model
    assert isinstance(model, PreTrainedModel)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _config(subject: Subject, place: RunDirectory, before: Path, steps: int | None) -> Config:
    config = subject.config
    train = config.train if steps is None else config.train.model_copy(update={"steps": steps})
    return config.model_copy(
        update={
            "name": place.name,
            "runs": str(place.path.parent),
            "model": config.model.model_copy(
                update={"path": str(before), "size": None, "config": None, "from_scratch": False}
            ),
            "train": train,
            "tune": TuneConfig(),
            "distil": DistilConfig(teacher=str(subject.run)),
        }
    )
