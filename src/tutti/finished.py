"""What can be done with a run that was trained: measure its model, ask it, let it write, hand it on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from tutti import models
from tutti.config import Config
from tutti.core.errors import RunError
from tutti.core.record import Asked
from tutti.core.rundir import RunDirectory
from tutti.core.types import Objective
from tutti.data.labelled import PreparedExamples, read_file
from tutti.explain import Explanation, Method, readings_of
from tutti.explain import explain as explain_example
from tutti.models.export import MARK, publish_export
from tutti.models.gguf import Weights, gguf_library, write_gguf
from tutti.models.onnx import export_onnx, onnx_runtime
from tutti.models.tuning import merged
from tutti.package import Asker, Package, Writer, is_package, open_any, open_writer
from tutti.tasks.talk import begin_turns
from tutti.tasks.task import Record
from tutti.train.job import Job
from tutti.train.labelled import LabelledJob, reader_of
from tutti.train.language import LanguageModelJob
from tutti.train.masked import MaskedJob
from tutti.train.writing import EncoderDecoderJob, score_writing, writer_of
from tutti.trained import (
    Trained,
    asker_of,
    data_of,
    load_causal,
    load_trained,
    measure,
    objective_with,
    part_of,
    require_causal,
    talks_of,
)

#: Of a model that is handed on.
Format = Literal["hugging_face", "onnx", "gguf"]


def evaluate(
    run: Path, *, split: str = "validation", samples: int | None = None, file: Path | None = None
) -> dict[str, Any]:
    """Loss (bits per byte of text, metrics of a task) of the run's model on `split`, over `samples` samples or all.

    The model is that of the newest sound checkpoint; of a task with metrics, that of the best. `file`: labelled
    examples to judge it by instead, in any format that a run reads. `run` may be what `compress` wrote, too: inside
    the run that it was made from, or with a `file`.

    Raises:
        TuttiError: there is no such run, checkpoint or part of the data.
    """
    began = time.perf_counter()
    if file is not None:
        found = _score(run, list(read_file(file, data_of(run)))[:samples])
        return {"run": str(run), "file": str(file), **found, "seconds": time.perf_counter() - began}
    trained, model, objective = _compressed(run) if is_package(run) else _as_trained(run)
    job, config, step = trained
    # What was compressed computes in fp32, or as its layers do.
    context = nullcontext() if is_package(run) else None
    found = measure(job, objective, part_of(job, split, config), config, samples=samples, context=context)
    if isinstance(job, LanguageModelJob | EncoderDecoderJob) and isinstance(job.prepared, PreparedExamples):
        found |= score_writing(model, config, job.prepared, split, samples)
    return {
        "run": str(run),
        "step": step,
        "split": split,
        **found,
        "seconds": time.perf_counter() - began,
    }


def _as_trained(run: Path) -> tuple[Trained, nn.Module, Objective]:
    trained = load_trained(run)
    return trained, trained.job.objective.model, trained.job.objective


def _compressed(place: Path) -> tuple[Trained, nn.Module, Objective]:
    """The model that `compress` left at `place`, and the run around it, whose data it is judged by."""
    run, made = place.resolve().parent, Package.read(place).made_from
    if not RunDirectory(run).config.is_file():
        raise RunError(
            f"{place} does not lie in the run that it was made from, so there is no text to judge it by",
            "name labelled examples with --file, or keep it in the directory of its run",
        )
    trained = load_trained(run)
    trained = trained._replace(step=made.get("step", trained.step))  # the run may have gone on since
    assert isinstance(trained.job, LabelledJob | EncoderDecoderJob | LanguageModelJob)
    if made.get("data") not in (trained.job.train_data.fingerprint, trained.job.prepared.fingerprint):
        raise RunError(
            f"{place} was made from another run than {run}, in which it lies",
            "put it into the run it was made from, or judge it by labelled examples with --file",
        )
    opened = open_any(place)
    if isinstance(opened, Asker):
        return trained, opened.objective.model, opened.objective
    return trained, opened.model, objective_with(trained.job, opened.model).eval()


def predict(place: Path, records: Sequence[Asked]) -> list[dict[str, Any]]:
    """What a model says of `records`: texts, or the fields of examples as the files had that it learned from.

    `place`: a run, or a directory that `compress` wrote.

    Raises:
        TuttiError: there is no such run, it is of no task with labelled examples, or a record is not one of its.
    """
    if is_package(place):
        return open_any(place).predict(records)
    job, config, _ = load_trained(place)
    if isinstance(job, MaskedJob):
        return job.filler(merged(job.objective.model)).predict(records)
    return _answerer(place, job, config).predict(records)


def explain(
    place: Path,
    records: Sequence[Asked],
    *,
    label: str | None = None,
    method: Method = "auto",
) -> list[list[Explanation]]:
    """Why a model says what it says of each of `records`: how much each word has to do with it.

    `place`, `records`: as in `predict`, of a model that classifies or tags. `label`: why this one, whether the model
    says so or not (of entities: those of this kind). `method`: integrated gradients, which the model has to have, or
    ablation, which takes any; `auto`: the first that can be had.

    Raises:
        TuttiError: as `predict`; it is of another task; it knows no such label; it has no gradients.
    """
    asker = open_any(place) if is_package(place) else _answerer(place, *load_trained(place)[:2])
    if not isinstance(asker, Asker):
        raise RunError(
            f"{place} writes: there is no label to explain", "this is for classify, relate and tag"
        )
    return [
        explain_example(asker, example, readings_of(asker, example), label=label, method=method)
        for example in asker.task.asked_about(records)
    ]


def _score(place: Path, records: Sequence[Record]) -> dict[str, float]:
    """Metrics of the model of `place` on labelled `records`."""
    if is_package(place):
        return open_any(place).score(records)
    job, config, _ = load_trained(place)
    return _answerer(place, job, config).score(records)


def _answerer(place: Path, job: Job, config: Config) -> Asker | Writer:
    """The trained model of `job`, of the run at `place`, that learned from examples."""
    if isinstance(job, LabelledJob):
        return asker_of(job, config)
    if isinstance(job, MaskedJob):
        raise RunError(
            f"{place} is a masked language model, which learned from no labelled examples",
            "measure it on its own text with `tutti evaluate`",
        )
    assert isinstance(job, LanguageModelJob | EncoderDecoderJob)
    if not isinstance(job.prepared, PreparedExamples):
        raise RunError(
            f"{place} is a language model, which learned from no labelled examples",
            "let it write with `tutti generate`, and measure it on its own text with `tutti evaluate`",
        )
    return writer_of(job.objective.model, config, job.prepared)


def generate(
    run: Path,
    prompts: Sequence[str],
    *,
    new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    suffix: str = "",
) -> list[str]:
    """Let the run's model continue `prompts`; temperature 0 always takes the likeliest token.

    `suffix`: what comes after what it writes, where it learned to fill in (`task.infill`). `run` may be a directory
    that `compress` wrote.

    Raises:
        TuttiError: there is no such run, or its model does not go on from texts.
    """
    if is_package(run):
        require_causal(run, Package.read(run).task)
        return open_writer(run).go_on(
            prompts, new_tokens, temperature=temperature, top_k=top_k, seed=seed, suffix=suffix
        )
    model, tokenizer, task = load_causal(run)
    return models.generate(
        model,
        tokenizer,
        begin_turns(talks_of(tokenizer, task), prompts) if task.kind == "chat" else prompts,
        new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        suffix=suffix,
    )


def export(
    run: Path,
    destination: Path | None = None,
    *,
    format: Format = "hugging_face",
    weights: Weights | None = None,
) -> Path:
    """Hand on the run's model (see `evaluate`) with its tokenizer; returns where it is.

    `format`: a directory for Hugging Face's libraries (default: `export/` of the run), one with `model.onnx`
    (`export-onnx/`), or a GGUF file for llama.cpp (`model-WEIGHTS.gguf`), whose `weights` have 32 or 16 bits, or 8 or 4
    in blocks that share a scale (default: `f16`).

    Raises:
        TuttiError: there is no such run, its model cannot be written so, or something else is at `destination`.
    """
    if format == "gguf":
        weights = weights or "f16"
        return _export_gguf(run, destination or run / f"model-{weights}.gguf", weights)
    if weights is not None:
        raise RunError(
            f"weights: {weights} is of a GGUF file; {format} has what was trained, in 32 bits",
            "add --format gguf, or leave --weights out",
        )
    if format == "onnx":
        return _export_onnx(run, destination or run / "export-onnx")
    if destination is None:
        destination = RunDirectory(run).export
    else:
        _refuse_to_replace(destination, RunDirectory(run).export)
    job, _, _ = load_trained(run)
    job.export(job.objective.model, destination)
    return destination


def _refuse_to_replace(destination: Path, own: Path) -> None:
    """Raise RunError where something else is at `destination` than the run's `own` export or one of Tutti's."""
    is_export = (destination / MARK).is_file() or destination.resolve() == own.resolve()
    if destination.exists() and not is_export and (not destination.is_dir() or any(destination.iterdir())):
        raise RunError(
            f"{destination} exists and is no model that tutti exported (no {MARK} in it)",
            "choose a directory that is not there yet, or an export to replace",
        )


def _export_onnx(run: Path, destination: Path) -> Path:
    onnx_runtime()  # before a model is read for nothing
    _refuse_to_replace(destination, run / "export-onnx")
    job, config, _ = load_trained(run)
    if not isinstance(job, LanguageModelJob | LabelledJob | MaskedJob):
        raise RunError(
            f"{run} is an encoder-decoder, which is two models; onnx takes one", "export it without --format"
        )
    model = merged(job.objective.model).eval()
    assert isinstance(model, PreTrainedModel)
    ids = torch.arange(8).view(2, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if isinstance(job, LabelledJob) and reader_of(config).types:
        inputs["token_type_ids"] = torch.zeros_like(ids)

    def write(directory: Path) -> None:
        model.config.save_pretrained(directory)
        export_onnx(model, inputs, directory / "model.onnx")

    return publish_export(job.prepared.tokenizer_directory, destination, write)


def _export_gguf(run: Path, destination: Path, weights: Weights) -> Path:
    gguf_library()  # before a model is read for nothing
    if destination.suffix != ".gguf" or destination.is_dir():
        raise RunError(f"{destination} is no name for a GGUF file", "name a file that ends in .gguf")
    job, config, _ = load_trained(run)
    if not isinstance(job, LanguageModelJob):
        raise RunError(
            f"{run} learned to {config.task.learned}; a GGUF file is for a causal language model",
            "export it without --format, or make it smaller with `tutti compress`",
        )
    model = merged(job.objective.model).eval()
    assert isinstance(model, PreTrainedModel)
    write_gguf(model, job.prepared.tokenizer_directory, destination, config.name, weights)
    return destination
