"""What can be done with a run that was trained: measure its model, ask it, let it write, hand it on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tutti import models
from tutti.config import Config, load_config
from tutti.core.errors import RunError
from tutti.core.rundir import RunDirectory
from tutti.data.labelled import PreparedExamples, read_file
from tutti.package import Asker, is_package, open_package
from tutti.tasks import Example, TextTask, make_writing_task
from tutti.tasks.task import Record
from tutti.tasks.writing import render
from tutti.train.job import Job
from tutti.train.labelled import LabelledJob
from tutti.train.language import LanguageModelJob
from tutti.train.writing import EncoderDecoderJob, score_writing, write
from tutti.trained import arithmetic_of, load_trained, measure, part_of


def evaluate(
    run: Path, *, split: str = "validation", samples: int | None = None, file: Path | None = None
) -> dict[str, Any]:
    """Loss (bits per byte of text, metrics of a task) of the run's model on `split`, over `samples` samples or all.

    The model is that of the newest sound checkpoint; of a task with metrics, that of the best. `file`: labelled
    examples to judge it by instead, in any format that a run reads; `run` may be what `compress` wrote then.

    Raises:
        TuttiError: there is no such run, checkpoint or part of the data.
    """
    began = time.perf_counter()
    if file is not None:
        found = _score(run, list(read_file(file))[:samples])
        return {"run": str(run), "file": str(file), **found, "seconds": time.perf_counter() - began}
    job, config, step = load_trained(run)
    found = measure(job, job.objective, part_of(job, split, config), config, samples=samples)
    if isinstance(job, LanguageModelJob | EncoderDecoderJob) and isinstance(job.prepared, PreparedExamples):
        found |= score_writing(job.objective.model, config, job.prepared, split, samples)
    return {
        "run": str(run),
        "step": step,
        "split": split,
        **found,
        "seconds": time.perf_counter() - began,
    }


def predict(place: Path, records: Sequence[Mapping[str, Any] | str]) -> list[dict[str, Any]]:
    """What a model says of `records`: texts, or the fields of examples as the files had that it learned from.

    `place`: a run, or a directory that `compress` wrote.

    Raises:
        TuttiError: there is no such run, it is of no task with labelled examples, or a record is not one of its.
    """
    if is_package(place):
        return open_package(place).predict(records)
    job, config, _ = load_trained(place)
    if config.task.labelled and not config.task.asks:
        return _write(job, config, records)
    if not isinstance(job, LabelledJob):
        raise RunError(
            f"{place} is a language model, which predicts no labels", "let it write with `tutti generate`"
        )
    return _asker(job, config).predict(records)


def _asker(job: LabelledJob, config: Config) -> Asker:
    return Asker(job.task, job.prepared.labels, job.encoder, job.objective, arithmetic_of(config))


def _score(place: Path, records: Sequence[Record]) -> dict[str, float]:
    """Metrics of the model of `place` on labelled `records`."""
    if is_package(place):
        return open_package(place).score(records)
    job, config, _ = load_trained(place)
    if isinstance(job, LabelledJob):
        return _asker(job, config).score(records)
    if not config.task.labelled:
        raise RunError(
            f"{place} is a language model, which learned from no labelled examples",
            "measure it on its own text: `tutti evaluate RUN`",
        )
    task = make_writing_task(config.task)
    examples = [task.example(record) for record in records]
    if not (found := task.score(_written(job, config, examples), examples)):
        raise RunError(f"there is no metric of what a model writes for task {config.task.kind}", "read it")
    return found


def label(
    run: Path, records: Sequence[Mapping[str, Any] | str], *, above: float = 0.9, most: int | None = None
) -> dict[str, Any]:
    """Labels for `records` by the model of a run, where it is sure: what another run can learn from as well.

    Returns `examples` (the fields that the run reads, the label, and the `score`, its chance), the surest first;
    `labels`: how many there are of each of the run's labels; and the numbers of records that are `unsure` (their chance
    is not above `above`), `known` (the run has their text, to train on or to be judged by, or another record has) and
    `surplus` (there are `most` surer ones of that label). `checked`: of so many validation examples (`of`) the model is
    as `sure`, and `right` about so many of these (None: the run has none).

    Raises:
        TuttiError: there is no such run, its task gives no text one label, or a record is not one of its.
    """
    if not 0 <= above < 1 or (most is not None and most < 1):
        raise RunError(
            f"above is {above} and most is {most}", "give a chance from 0 to below 1, and 1 or more examples"
        )
    job, config, _ = load_trained(run)
    if not isinstance(job, LabelledJob) or config.task.kind != "classify" or config.task.multiple:
        raise RunError(f"{run} gives no text one label", "name a run with task: classify, without multiple")
    task, parts, called = job.task, job.prepared.parts, config.task.fields
    examples = task.asked_about(records)
    known = {_plain(task, example) for part in parts.values() for example in part.read()}
    new: dict[str, Example] = {}
    for example in examples:
        if (text := _plain(task, example)) not in known:
            new.setdefault(text, example)
    asker = _asker(job, config)
    said = _likeliest(asker, called, list(new.values()))
    counts, kept = dict.fromkeys(job.prepared.labels.names, 0), []
    for example, (name, score) in sorted(
        zip(new.values(), said, strict=True), key=lambda one: one[1].score, reverse=True
    ):
        if score > above and (most is None or counts[name] < most):
            counts[name] += 1
            kept.append(_fields(called, example | {"label": name}) | {"score": score})
    unsure = sum(score <= above for _, score in said)
    checked = None
    if "validation" in parts:
        true = parts["validation"].read()
        sure = [
            name == example["labels"][0]
            for example, (name, score) in zip(true, _likeliest(asker, called, true), strict=True)
            if score > above
        ]
        checked = {"of": len(true), "sure": len(sure), "right": sum(sure)}
    return {
        "examples": kept,
        "labels": counts,
        "unsure": unsure,
        "known": len(examples) - len(new),
        "surplus": len(new) - unsure - len(kept),
        "checked": checked,
    }


class _Guess(NamedTuple):
    label: str
    score: float


def _likeliest(asker: Asker, called: Mapping[str, str], examples: Sequence[Example]) -> list[_Guess]:
    """The likeliest label of each of `examples`, and its chance."""
    said = asker.predict([_fields(called, example) for example in examples])
    return [_Guess(one["label"], one["scores"][one["label"]]) for one in said]


def _fields(called: Mapping[str, str], example: Example) -> dict[str, Any]:
    """`example`, without what it learned by, as the user's files call its fields."""
    return {called.get(name, name): value for name, value in example.items() if name != "labels"}


def _plain(task: TextTask, example: Example) -> str:
    """What an example is known by, among others."""
    return " ".join(task.text(example).split())


def _write(job: Job, config: Config, records: Sequence[Mapping[str, Any] | str]) -> list[dict[str, Any]]:
    """What a model that learned to write from examples writes to `records`."""
    examples = make_writing_task(config.task).asked_about(records)
    return [{"text": text} for text in _written(job, config, examples)]


def _written(job: Job, config: Config, examples: Sequence[Example]) -> list[str]:
    assert isinstance(job, LanguageModelJob | EncoderDecoderJob) and isinstance(
        job.prepared, PreparedExamples
    )
    return write(job.objective.model, config, job.prepared, examples)


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
    if (config := load_config(directory.config)).task.kind not in ("language_model", "chat"):
        raise RunError(
            f"{run} learned to {config.task.kind}, not to go on from a text",
            f"ask it with `tutti predict {run} …`",
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
    is_export = any((destination / name).is_file() for name in ("config.json", "adapter_config.json"))
    if destination.exists() and not is_export and (not destination.is_dir() or any(destination.iterdir())):
        raise RunError(
            f"{destination} exists and is no exported model",
            "choose a directory that is not there yet, or an export to replace",
        )
    job, _, _ = load_trained(run)
    job.export(job.objective.model, destination)
    return destination
