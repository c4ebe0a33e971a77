"""Teachers of a run: exported models of the same task, with the same labels and tokenizer."""

from __future__ import annotations

from pathlib import Path

from tutti.config.schema import Config
from tutti.core import ModelError, RunDirectory
from tutti.data.labelled import PreparedExamples
from tutti.data.tokenizer import load_for_encoding
from tutti.models import find_blocks
from tutti.models.heads import load_with_head
from tutti.tasks import Task
from tutti.tasks.dense import install
from tutti.tasks.packing import ATTENTION
from tutti.tasks.scored import Scored
from tutti.tasks.teachers import Teachers


def find_teachers(config: Config, prepared: PreparedExamples, task: Task) -> Teachers | None:
    """Those that `config.distil` names, in memory; None: it names none.

    Raises:
        ModelError: there is no such model, or it was made for other labels or another tokenizer.
    """
    if not config.distil.teachers:
        return None
    words = load_for_encoding(prepared.tokenizer_directory).get_vocab()
    return Teachers(
        [_teacher(place, words, prepared, task) for place in config.distil.teachers], config.distil
    )


def _teacher(place: str, words: dict[str, int], prepared: PreparedExamples, task: Task) -> Scored:
    directory = _directory_of(Path(place).expanduser())
    model = load_with_head(directory, task.kind)
    labels = prepared.labels.names
    theirs = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    if labels and task.words == "text" and theirs != dict(enumerate(labels)):
        odd = sorted(set(theirs.values()) ^ set(labels))
        raise ModelError(
            f"the teacher {place} was made for other labels than these examples have"
            + (f", e.g. '{odd[0]}'" if odd else ""),
            "name a run on the same examples in distil.teacher",
        )
    if load_for_encoding(directory).get_vocab() != words:
        raise ModelError(
            f"the teacher {place} has another tokenizer than the model that is to learn",
            f"use the teacher's for both, data.tokenizer: {directory}, or another teacher",
        )
    blocks = find_blocks(model)
    if blocks:
        install(model, blocks, ATTENTION)
    objective = task.objective(model, prepared.labels)
    assert isinstance(objective, Scored), "every task whose model is asked is scored"
    return objective


def _directory_of(place: Path) -> Path:
    """Where the model of `place` is: a run's export, or `place` itself."""
    run = RunDirectory(place)
    if run.config.is_file() and not (run.export / "config.json").is_file():
        raise ModelError(
            f"the teacher {place} is a run without an exported model",
            f"let it end, or `tutti export {place}`",
        )
    return run.export if run.config.is_file() else place
