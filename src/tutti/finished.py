"""What can be done with a run that was trained: measure its model, ask it, let it write, hand it on."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tutti import models
from tutti.config import Config, load_config
from tutti.config.task import FIELDS
from tutti.core.errors import CheckpointError, RunError, TuttiError
from tutti.core.rundir import RunDirectory
from tutti.core.types import SampleSource
from tutti.data.labelled import ListedRows
from tutti.data.settings import PARTS
from tutti.evaluate import Answering, Evaluation, answers_in, spread, sum_losses
from tutti.parallel import Split, World
from tutti.starting import prepare, text_has_changed
from tutti.tasks import Record
from tutti.tasks.chat import render
from tutti.train import checkpoints
from tutti.train.job import Job
from tutti.train.labelled import LabelledJob, labelled_job
from tutti.train.language import LanguageModelJob, language_model_job, source_of
from tutti.train.precision import compute_context

#: Texts that a model is asked about at once.
_ASKED_AT_ONCE = 32


def evaluate(run: Path, *, split: str = "validation", samples: int | None = None) -> dict[str, Any]:
    """Loss (bits per byte of text, metrics of a task) of the run's model on `split`, over `samples` samples or all.

    The model is that of the newest sound checkpoint; of a task with metrics, that of the best.

    Raises:
        TuttiError: there is no such run, checkpoint or part of the data.
    """
    began = time.perf_counter()
    job, config, step = load_trained(run)
    source = _source(job, split, config)
    count = min(samples or source.samples_in_epoch(0), source.samples_in_epoch(0))
    sums = sum_losses(
        functools.partial(Split(job.objective, World.alone()).measure, context=_context(config)),
        source,
        samples=count,
        part=0,
        parts=1,
        micro_batch=int(config.train.micro_batch),
        device=torch.device("cpu"),
        target_bytes=job.target_bytes,
        answering=Answering(job.objective, job.answer_width) if job.answer_width else None,
    )
    result = Evaluation.of(sums)
    found = {
        "run": str(run),
        "step": step,
        "split": split,
        "loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
    }
    if job.answer_width:
        del found["bits_per_byte"]
        numbers = spread(count, source.samples_in_epoch(0))
        found |= job.score(source, numbers, answers_in(sums, count))
    return found | {"targets": result.targets, "seconds": time.perf_counter() - began}


def _source(job: Job, split: str, config: Config) -> SampleSource:
    if isinstance(job, LabelledJob):
        if split not in job.prepared.parts:
            raise TuttiError(
                f"this run has no part '{split}' of its data", f"there are: {', '.join(job.prepared.parts)}"
            )
        return job.source(split)
    assert isinstance(job, LanguageModelJob)
    source = source_of(config, job.prepared, split, shift=False)
    if source is None:
        there = [part for part in PARTS if source_of(config, job.prepared, part, shift=False) is not None]
        raise TuttiError(f"this run has no part '{split}' of its text", f"there are: {', '.join(there)}")
    return source


def predict(run: Path, records: Sequence[Mapping[str, Any] | str]) -> list[dict[str, Any]]:
    """What the run's model says of `records`: texts, or the fields of examples as the run's files had them.

    Raises:
        TuttiError: there is no such run, it is of no task with labelled examples, or a record is not one of its.
    """
    job, config, _ = load_trained(run)
    if not isinstance(job, LabelledJob):
        raise RunError(
            f"{run} is a language model, which predicts no labels", "let it write with `tutti generate`"
        )
    task, labels = job.task, job.prepared.labels
    if "text" not in FIELDS[task.kind] and any(isinstance(record, str) for record in records):
        raise RunError(
            f"{run} learned to {task.kind}, and is asked with more than a text: {', '.join(FIELDS[task.kind][:-1])}",
            "give a file with these fields: `tutti predict RUN --file FILE`",
        )
    fields = [{config.task.fields.get("text", "text"): r} if isinstance(r, str) else r for r in records]
    examples = [
        task.example(Record(f"record {number}", one), labelled=False) for number, one in enumerate(fields, 1)
    ]
    rows = ListedRows(task.rows(examples, labels, job.encoder)) if examples else ListedRows([])
    answers = np.zeros((len(rows), task.width(rows, labels)))
    # Alike lengths together: less padding.
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
    job.objective.eval()
    with torch.no_grad(), _context(config):
        for start in range(0, len(order), _ASKED_AT_ONCE):
            some = order[start : start + _ASKED_AT_ONCE]
            with Answering(job.objective, answers.shape[1]).listening() as given:
                job.objective(task.batch([rows[number] for number in some], job.prepared.pad))
            answers[some, : given[0].shape[1]] = given[0].double().numpy()
    return task.decode(answers, rows, examples, labels)


def generate(
    run: Path,
    prompts: Sequence[str],
    *,
    new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> list[str]:
    """Let the run's model continue `prompts`; temperature 0 always takes the likeliest token."""
    directory = RunDirectory(run)
    directory.require()
    if (config := load_config(directory.config)).task.asks:
        raise RunError(
            f"{run} learned to {config.task.kind}, not to write", f"ask it with `tutti predict {run} …`"
        )
    if _export_is_current(directory):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(directory.export)
        tokenizer = AutoTokenizer.from_pretrained(directory.export)
    else:
        job, _, _ = load_trained(run)
        assert isinstance(job, LanguageModelJob)
        model = job.objective.model
        tokenizer = AutoTokenizer.from_pretrained(job.prepared.tokenizer_directory)
    assert isinstance(model, PreTrainedModel)
    if config.task.kind == "chat":
        fill = render(tokenizer.name_or_path)
        prompts = [fill([{"role": "user", "content": prompt}], True) for prompt in prompts]
    return models.generate(
        model, tokenizer, list(prompts), new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )


def _export_is_current(directory: RunDirectory) -> bool:
    """Whether `export/` was written after the newest checkpoint (a resumed run may have gone on since)."""
    exported, latest = directory.export / "config.json", directory.checkpoints / "LATEST"
    if not exported.is_file():
        return False
    return not latest.is_file() or exported.stat().st_mtime >= latest.stat().st_mtime


def export(run: Path, destination: Path | None = None) -> Path:
    """Write the run's model (see `evaluate`) in Hugging Face format (default: `export/` of the run)."""
    destination = destination or RunDirectory(run).export
    is_export = (destination / "config.json").is_file()
    if destination.exists() and not is_export and (not destination.is_dir() or any(destination.iterdir())):
        raise RunError(
            f"{destination} exists and is no exported model",
            "choose a directory that is not there yet, or an export to replace",
        )
    job, _, _ = load_trained(run)
    job.export(job.objective.model, destination)
    return destination


def load_trained(run: Path) -> tuple[Job, Config, int]:
    """The job of a run with its trained model, its configuration, and the step that the model is of.

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
    find = checkpoints.best_valid if config.task.asks else checkpoints.newest_valid
    path = find(directory.checkpoints)
    if path is None and directory.groups.is_dir():
        raise RunError(f"{run} has several groups, each with a model", f"name one: {directory.groups / '0'}")
    if path is None:
        raise CheckpointError(
            f"{run} has no sound checkpoint yet", "train it first, or continue it with --resume"
        )
    job: Job = (
        labelled_job(config, prepare(config).directory)
        if config.task.asks
        else language_model_job(config, prepare(config).directory)
    )
    identity = checkpoints.read_manifest(path).meta["identity"]
    if identity["data"] != job.train_data.fingerprint:
        raise text_has_changed(run)
    state = {"model": checkpoints.gather_state(job.objective.model)["model"]}
    meta = checkpoints.load(path, state)
    job.objective.eval()
    return job, config, int(meta["step"])


def _context(config: Config) -> Any:
    return compute_context(config.train.precision, torch.device("cpu"), sharded=False)
