"""The directory: `config.json` and the tokenizer as Hugging Face has them, the weights, and what the model is for.

    tutti.json          task, labels, how long texts may be, and what the weights are
    model.safetensors   quantized modules (`tutti.models.quantized`), or an ordinary Hugging Face model's weights
    model.onnx          or the whole computation, for onnxruntime

`publish_package` puts one where it is to be used, so that a directory of that name is always complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tutti.config.task import TaskConfig
from tutti.core import ModelError, RunError, write_json_atomically
from tutti.core.files import replace_directory
from tutti.core.rundir import unwritable
from tutti.data.labelled import Reader, encoder_in
from tutti.models import build_with_head, build_writer, find_blocks
from tutti.models.onnx import OnnxModel
from tutti.models.quantized import load_quantized
from tutti.package.asker import Asker
from tutti.package.writer import Writer
from tutti.tasks import Labels, RowEncoder, TextTask, make_task, make_writing_task
from tutti.tasks.dense import install
from tutti.tasks.packing import ATTENTION

MANIFEST = "tutti.json"
_FORMAT = 1
_WEIGHTS, _ONNX = "model.safetensors", "model.onnx"
Engine = Literal["torch", "onnx"]


@dataclass(frozen=True)
class Package:
    """What `tutti.json` says. `recipe`: how the model was made smaller; `made_from`: the run, and its step.

    `new_tokens`: that a model writes to an example, at most; `beams`: texts that it follows side by side there.
    """

    engine: Engine
    task: TaskConfig
    labels: tuple[str, ...]
    label_counts: tuple[int, ...]
    length: int
    types: bool
    recipe: str
    made_from: dict[str, Any]
    new_tokens: int = 64
    beams: int = 1

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        values = vars(self) | {"task": self.task.model_dump(mode="json"), "format": _FORMAT}
        return values | {"labels": list(self.labels), "label_counts": list(self.label_counts)}

    @classmethod
    def read(cls, directory: Path) -> Package:
        """What the file in `directory` says.

        Raises:
            RunError: there is none, it is damaged, or of a later Tutti.
        """
        path = directory / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != _FORMAT:
                raise RunError(f"{path} is of another version of Tutti", "make it again with compress")
            lists = {name: tuple(values[name]) for name in ("labels", "label_counts")}
            return cls(**(values | lists | {"task": TaskConfig.model_validate(values["task"])}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{directory} holds no compressed model: {error}", "make one with `tutti compress RUN`"
            ) from error


def is_package(directory: Path) -> bool:
    """Whether `compress` wrote `directory`."""
    return (directory / MANIFEST).is_file()


def write_package(
    directory: Path,
    package: Package,
    architecture: Any,
    tokenizer_directory: Path,
    save: Callable[[Path], None],
) -> Path:
    """Write `package` to `directory`, which must not be there yet. `save` writes the weights to the path it is given.

    Raises:
        RunError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True)
        architecture.save_pretrained(directory)
        for file in sorted(tokenizer_directory.iterdir()):
            if file.is_file():
                shutil.copyfile(file, directory / file.name)
        save(directory / (_ONNX if package.engine == "onnx" else _WEIGHTS))
        write_json_atomically(directory / MANIFEST, package.as_json())
        for file in directory.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone; a service may run as somebody else
    except OSError as error:
        raise unwritable(directory, error) from error
    return directory


def publish_package(made: Path, directory: Path) -> None:
    """Copy the package `made` to `directory`, in place of the one that is there: one of them is always whole.

    Raises:
        RunError: something else is there, or it cannot be written.
    """
    refuse_to_replace(directory)
    directory = directory.resolve()  # a link stays one
    try:
        replace_directory(directory, lambda beside: shutil.copytree(made, beside, dirs_exist_ok=True))
    except OSError as error:
        raise unwritable(directory, error) from error


def refuse_to_replace(directory: Path) -> None:
    """Raise RunError where something else than a package is at `directory`, or nothing can be written there."""
    full = directory.is_dir() and any(directory.iterdir())
    if directory.exists() and not is_package(directory) and (full or not directory.is_dir()):
        raise RunError(
            f"{directory} exists and is no model that `tutti compress` or `tutti combine` wrote",
            "choose a directory that is not there yet",
        )
    there = next(parent for parent in directory.absolute().parents if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{there} cannot be written", "choose another place with --to")


def package_bytes(directory: Path) -> int:
    """Bytes of the weights (of the whole computation, with ONNX)."""
    return sum(path.stat().st_size for path in directory.glob("model.*"))


def open_package(directory: Path) -> Asker:
    """The model in `directory`, to be asked.

    Raises:
        TuttiError: it is damaged, or not complete.
    """
    package = Package.read(directory)
    task, labels = make_task(package.task), Labels(package.labels, package.label_counts)
    model = _onnx(directory) if package.engine == "onnx" else _torch(directory, package)
    encoder = _encoder(directory, task, Reader(package.length, package.types))
    objective = task.objective(model, labels)
    objective.eval()
    return Asker(task, labels, encoder, objective)


def open_writer(directory: Path) -> Writer:
    """The model in `directory`, to let it write.

    Raises:
        TuttiError: it is damaged, or not complete.
    """
    package = Package.read(directory)
    model = build_writer(_architecture(directory))
    with suppress(OSError):  # what it was trained with, where that says more than its architecture
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    model.eval()  # type: ignore[no-untyped-call]
    load_quantized(model, directory / _WEIGHTS)
    task = make_writing_task(package.task) if package.task.labelled else None
    encoder = None
    if task is not None:
        reader = Reader(package.length, types=False, decodes=bool(model.config.is_encoder_decoder))
        encoder = _encoder(directory, task, reader)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers' own kinds
        raise _damaged_tokenizer(directory, error) from error
    return Writer(model, tokenizer, task, encoder, package.new_tokens, package.beams)


def open_any(directory: Path) -> Asker | Writer:
    """The model in `directory`, to be asked or to write, as its task has it.

    Raises:
        TuttiError: it is damaged, or not complete.
    """
    return open_package(directory) if Package.read(directory).task.asks else open_writer(directory)


def _onnx(directory: Path) -> nn.Module:
    return OnnxModel(directory / _ONNX, threads=torch.get_num_threads())


def _torch(directory: Path, package: Package) -> nn.Module:
    model = build_with_head(_architecture(directory), package.task.kind)
    model.eval()  # type: ignore[no-untyped-call]
    blocks = find_blocks(model)
    if blocks:
        install(model, blocks, ATTENTION)  # before: whether it can is tried with exact numbers
    load_quantized(model, directory / _WEIGHTS)
    return model


def _architecture(directory: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}/config.json cannot be read: {error}", "make it again") from error


def _encoder(directory: Path, task: TextTask, reader: Reader) -> RowEncoder:
    try:
        return encoder_in(directory, task, reader)
    except Exception as error:  # tokenizers raises its own kind
        raise _damaged_tokenizer(directory, error) from error


def _damaged_tokenizer(directory: Path, error: Exception) -> ModelError:
    return ModelError(f"the tokenizer in {directory} is damaged: {error}", "make it again")
