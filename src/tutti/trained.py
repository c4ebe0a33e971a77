"""The trained model of a run, brought back from its checkpoints, and a measure of it on what was kept aside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tutti.config import Config, load_config
from tutti.config.data import DataConfig
from tutti.config.task import TaskConfig
from tutti.core.errors import CheckpointError, RunError, TuttiError
from tutti.core.rundir import RunDirectory
from tutti.core.types import Objective, SampleSource
from tutti.data.labelled import Reader, encoder_in
from tutti.data.settings import PARTS
from tutti.evaluate import Answering, Evaluation, answers_in, spread, sum_losses
from tutti.package import Asker
from tutti.parallel import Split, World
from tutti.starting import prepare, text_has_changed
from tutti.tasks import CausalLanguageModelling, RowEncoder, make_text_task
from tutti.tasks.sequences import EncoderDecoder
from tutti.train import checkpoints
from tutti.train.job import Job
from tutti.train.labelled import LabelledJob, has_head, labelled_job
from tutti.train.language import LanguageModelJob, language_model_job, source_of
from tutti.train.masked import MaskedJob, masked_job, masked_source
from tutti.train.precision import compute_context
from tutti.train.writing import EncoderDecoderJob, encoder_decoder_job

#: Kinds of task whose model goes on from texts.
_GO_ON = ("language_model", "chat")


class Trained(NamedTuple):
    """`job`: with the trained model. `step`: that it is of."""

    job: Job
    config: Config
    step: int


def load_trained(run: Path) -> Trained:
    """The trained model of a run: that of the newest sound checkpoint; of a task with metrics, or with
    `train.patience`, that of the best.

    Raises:
        TuttiError: there is no such run, nothing sound was saved of it, or its data is another now.
    """
    directory = RunDirectory(run)
    directory.require()
    config = load_config(directory.config)
    if config.model.python is not None:
        raise RunError(
            f"{run} was trained by tutti.fit: its model is your own class",
            "load export/model.safetensors into it",
        )
    path = trained_checkpoint(directory, config)
    if path is None and directory.groups.is_dir():
        raise RunError(f"{run} has several groups, each with a model", f"name one: {directory.groups / '0'}")
    if path is None:
        raise CheckpointError(
            f"{run} has no sound checkpoint yet", "train it first, or continue it with --resume"
        )
    make: Callable[[Config, Path], Job] = language_model_job
    if config.task.masked:
        make = masked_job
    elif has_head(config):
        make = labelled_job if config.task.asks else encoder_decoder_job
    job = make(config, prepare(config).directory)
    identity = checkpoints.read_manifest(path).meta["identity"]
    if identity["data"] != job.train_data.fingerprint:
        raise text_has_changed(run)
    meta = checkpoints.load_weights(path, job.objective.model)
    job.objective.eval()
    job.complete(job.objective.model, arithmetic_of(config))
    return Trained(job, config, int(meta["step"]))


def data_of(place: Path) -> DataConfig:
    """How the data of a run was read; of what was compressed, that of the run in which it lies, where it does."""
    for run in (RunDirectory(place), RunDirectory(place.resolve().parent)):
        if run.config.is_file():
            return load_config(run.config).data
    return DataConfig()


def trained_checkpoint(directory: RunDirectory, config: Config) -> Path | None:
    """Where the trained model of a run with `config` is; None: nothing sound was saved."""
    best = config.task.asks or config.train.patience is not None  # as `Validator.hands_on_best` has it
    return (checkpoints.best_valid if best else checkpoints.newest_valid)(directory.checkpoints)


def part_of(job: Job, split: str, config: Config) -> SampleSource:
    """The samples of `split` of a run's data.

    Raises:
        TuttiError: it has no such part.
    """
    if isinstance(job, LabelledJob | EncoderDecoderJob):
        if split not in job.prepared.parts:
            raise TuttiError(
                f"this run has no part '{split}' of its data", f"there are: {', '.join(job.prepared.parts)}"
            )
        return job.source(split)
    find: Callable[[str], SampleSource | None]
    if isinstance(job, MaskedJob):
        find = functools.partial(masked_source, config, job.prepared, shift=False)
    else:
        assert isinstance(job, LanguageModelJob)
        find = functools.partial(source_of, config, job.prepared, shift=False)
    source = find(split)
    if source is None:
        there = [part for part in PARTS if find(part) is not None]
        raise TuttiError(f"this run has no part '{split}' of its text", f"there are: {', '.join(there)}")
    return source


def objective_with(job: Job, model: nn.Module) -> Objective:
    """What `job` learned, by another `model` of the same kind, whose layers may be of whole numbers."""
    if isinstance(job, LabelledJob):
        return job.task.objective(model, job.prepared.labels)
    if isinstance(job, EncoderDecoderJob):
        return EncoderDecoder(model)
    assert isinstance(job, LanguageModelJob) and isinstance(job.objective, CausalLanguageModelling)
    # A loss by parts goes through the head's weights, which are no longer plain numbers.
    return CausalLanguageModelling(model, replace(job.objective.manner, chunked=False))


def measure(
    job: Job,
    objective: Objective,
    source: SampleSource,
    config: Config,
    *,
    samples: int | None = None,
    context: AbstractContextManager[None] | None = None,
) -> dict[str, Any]:
    """`loss`, and `bits_per_byte` or a task's metrics, of `objective` on `source`: over `samples` samples, or all.

    `context`: of the arithmetic; None: that of the run.
    """
    count = min(samples or source.samples_in_epoch(0), source.samples_in_epoch(0))
    sums = sum_losses(
        functools.partial(Split(objective, World.alone()).measure, context=context or arithmetic_of(config)),
        source,
        samples=count,
        part=0,
        parts=1,
        micro_batch=int(config.train.micro_batch),
        device=torch.device("cpu"),
        target_bytes=job.target_bytes,
        answering=Answering(objective, job.answer_width) if job.answer_width else None,
    )
    result = Evaluation.of(sums)
    found: dict[str, Any] = {"loss": result.loss}
    if job.answer_width:
        numbers = spread(count, source.samples_in_epoch(0))
        found |= job.score(source, numbers, answers_in(sums, count))
    else:
        found["bits_per_byte"] = result.bits_per_byte
    return found | {"targets": result.targets}


def arithmetic_of(config: Config) -> Any:
    """The context in which a run's model computes on the CPU."""
    return compute_context(config.train.precision, torch.device("cpu"), sharded=False)


def asker_of(job: LabelledJob, config: Config) -> Asker:
    """What asks the trained model of `job`, in the arithmetic of its run."""
    return Asker(job.task, job.prepared.labels, job.encoder, job.objective, arithmetic_of(config))


def task_of(run: Path) -> TaskConfig:
    """What the model of `run` learned.

    Raises:
        TuttiError: there is no such run.
    """
    directory = RunDirectory(run)
    directory.require()
    return load_config(directory.config).task


def export_in_use(run: Path) -> Path | None:
    """The export that `load_causal` loads; None: it takes a checkpoint, or the model does not go on from texts."""
    directory, task = RunDirectory(run), task_of(run)
    return directory.export if task.kind in _GO_ON and _export_is_current(directory) else None


def load_causal(run: Path) -> tuple[PreTrainedModel, Any, TaskConfig]:
    """The model of a run that goes on from texts, its tokenizer (transformers'), and what it learned.

    Raises:
        TuttiError: there is no such run, nothing sound was saved of it, or it learned something else.
    """
    task = task_of(run)
    require_causal(run, task)
    if (export := export_in_use(run)) is not None:
        model: Any = AutoModelForCausalLM.from_pretrained(export)
        return model, AutoTokenizer.from_pretrained(export), task
    job, _, _ = load_trained(run)
    assert isinstance(job, LanguageModelJob) and isinstance(job.objective.model, PreTrainedModel)
    return job.objective.model, AutoTokenizer.from_pretrained(job.prepared.tokenizer_directory), task


def talks_of(tokenizer: Any, task: TaskConfig) -> RowEncoder:
    """How a run of `task`, whose model writes, reads talks with the `tokenizer` that `load_causal` gave."""
    return encoder_in(Path(tokenizer.name_or_path), make_text_task(task), Reader(1, types=False))


def require_causal(place: Path, task: TaskConfig) -> None:
    """Raise RunError where the model of `place` does not go on from texts."""
    if task.kind not in _GO_ON:
        raise RunError(
            f"{place} learned to {task.learned}, not to go on from a text",
            f"ask it with `tutti predict {place} …`",
        )


def _export_is_current(directory: RunDirectory) -> bool:
    """Whether `export/` was written after the newest checkpoint (a resumed run may have gone on since)."""
    exported, latest = directory.export / "config.json", directory.checkpoints / "LATEST"
    if not exported.is_file():
        return False
    return not latest.is_file() or exported.stat().st_mtime >= latest.stat().st_mtime
