"""The trained model as a directory that plain `transformers` opens, with the tokenizer it was trained with.

Written beside its destination and renamed, so a directory of that name is always complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from tutti import __version__
from tutti.core import ModelError
from tutti.core.files import replace_directory
from tutti.core.rundir import unwritable

#: A file of every export, by which a later one knows that it may take its place.
MARK = "tutti_export.json"


def export_model(
    model: nn.Module,
    tokenizer_directory: Path,
    destination: Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, str] | None = None,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's files to `destination`.

    A directory that is there already is replaced. `state` holds other weights to write instead of the
    model's own (whole tensors, by the model's parameter names). `beside`: other files to write, content by name.
    `also`: writes more into the directory that it is given.

    Raises:
        ModelError: `model` is no Hugging Face model, so there is no format that others could open.
        RunError: `destination` cannot be written.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"a {type(model).__name__} has no Hugging Face format to export to",
            "save it yourself with torch.save(model.state_dict(), …)",
        )

    def write(directory: Path) -> None:
        model.save_pretrained(directory, state_dict=None if state is None else dict(state))
        for name, content in (beside or {}).items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(content, encoding="utf-8")
        if also is not None:
            also(directory)

    return publish_export(tokenizer_directory, destination, write)


def publish_export(tokenizer_directory: Path, destination: Path, write: Callable[[Path], None]) -> Path:
    """What `write` writes into the directory that it is given, with the tokenizer's files, at `destination`.

    Raises:
        RunError: `destination` cannot be written.
    """

    def fill(directory: Path) -> None:
        write(directory)
        said = {"written_by": f"tutti {__version__}", "another_export": "replaces this directory"}
        (directory / MARK).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        for file in sorted(tokenizer_directory.iterdir()):
            if file.is_file():
                shutil.copyfile(file, directory / file.name)
        for file in filter(Path.is_file, directory.rglob("*")):
            file.chmod(0o644)  # safetensors writes for the owner alone; a service may run as somebody else

    try:
        replace_directory(destination.resolve(), fill)  # a link stays one
    except OSError as error:
        raise unwritable(destination, error) from error
    return destination
