"""What the server needs to go on after its death: one file, replaced as a whole.

Writing takes a while, so it is done as often as costs at most a twentieth of the time. What was pushed since then is
lost with the server, and its samples are trained on again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tutti.core.files import fsync_directory
from tutti.core.rundir import unwritable

#: Writing takes at most this share of the time, and is done at most so often.
_SHARE, _LEAST_SECONDS = 0.05, 1.0


class ServerMemory:
    """The file at `path`, which has its directory to itself.

    `owner`: whose it is; a file of somebody else (an earlier command) is left alone.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._owner = owner
        self._written = -float("inf")
        self._pause = _LEAST_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether it may be written again."""
        return time.monotonic() - self._written > self._pause

    def write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace what was there.

        Raises:
            RunError: the disk is full, or cannot be written.
        """
        began = time.monotonic()
        try:
            self._replace(tensors, facts)
        except OSError as error:
            raise unwritable(self._path.parent, error) from error
        self._written = time.monotonic()
        self._pause = max(_LEAST_SECONDS, (self._written - began) / _SHARE)

    def _replace(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        content = safetensors.torch.save(
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            {"owner": self._owner, "facts": json.dumps(facts)},
        )
        beside = self._path.with_name(f".{self._path.name}.tmp")
        beside.parent.mkdir(exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        fsync_directory(self._path.parent)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was written last; None: nothing of ours."""
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata()
                if metadata.get("owner") != self._owner:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["facts"])  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return None

    def forget(self) -> None:
        """The run is over."""
        shutil.rmtree(self._path.parent, ignore_errors=True)
