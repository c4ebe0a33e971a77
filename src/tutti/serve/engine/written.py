"""Models that were written as ONNX for this machine, kept for the next start: to write one takes half a minute."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from tutti.models.onnx import fastest_opsets

#: So many stay; what was not used for longest goes.
_KEPT = 6
_FILE = "model.onnx"
#: What an exported model depends on, beside itself.
_MADE_BY = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "tutti")


def directory() -> Path:
    """Where they are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tutti" / "onnx"


def name_of(model: nn.Module, inputs: Mapping[str, Tensor], *, int8: bool) -> str:
    """The same for the same weights, architecture, inputs and libraries."""
    config: Any = model.config
    digest = xxhash.xxh3_128(
        f"{sorted(inputs)} {int8} {fastest_opsets(model)} {config.to_json_string()}".encode()
    )
    for package in _MADE_BY:
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)};".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def kept(name: str, write: Callable[[Path], object], read: Callable[[Path], Any]) -> Any:
    """What `read` makes of the file under `name`, which `write` writes if it is not there or cannot be read. Where
    nothing can be kept it is written for this time."""
    place = directory() / name
    if (place / _FILE).is_file():
        with contextlib.suppress(Exception):  # half a file, or of another machine: it is written anew
            found = read(place / _FILE)
            os.utime(place)
            return found
        shutil.rmtree(place, ignore_errors=True)
    made = _new_directory(place.parent)
    try:
        write(made / _FILE)
        found = read(made / _FILE)
        with contextlib.suppress(OSError):  # somebody else was faster, or it cannot be kept
            made.rename(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _tidy(place.parent)
    return found


def _new_directory(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent, prefix="new-"))
    except OSError:
        return Path(tempfile.mkdtemp())


def _tidy(place: Path) -> None:
    with contextlib.suppress(OSError):
        every = sorted((one for one in place.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
        for old in every[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
