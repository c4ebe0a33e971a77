"""Finding the newest checkpoint that is whole, and loading one into any layout.

torch.distributed.checkpoint reshards: every rank reads the parts that its own shards need, whatever layout
wrote them. Files hold pickles (as DCP defines them): load only checkpoints that you trust.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from tutti import __version__
from tutti.core import CheckpointError
from tutti.train.checkpoints.manifest import (
    BEST,
    LATEST,
    Damaged,
    Manifest,
    read_manifest,
    read_pointer,
    verify,
)
from tutti.train.checkpoints.retention import Entry, entries, pointed
from tutti.train.checkpoints.state import gather_state

#: What an optimizer's state calls the average of a parameter, where there is one.
AVERAGE = "average"
_SHOWN = 5


def newest_valid(directory: Path, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest checkpoint in `directory` of which every byte is as it was written; None when there is none.

    It is the one that `LATEST` names, or, when that is torn or damaged, the one written before it, and so on;
    `say` is told what was passed over and why. Reads the whole checkpoint, so let one rank call it.
    """
    candidates = entries(directory)
    try:
        latest = read_pointer(directory / LATEST)
    except Damaged as damage:
        say(f"{directory / LATEST} cannot be followed ({damage}): looking for the newest whole checkpoint")
    else:
        # Whatever is newer was never committed: it comes last.
        first = next((i for i, entry in enumerate(candidates) if entry.path == latest), 0)
        candidates = candidates[first:] + candidates[:first]
    for entry in candidates:
        manifest = _whole(entry, say)
        if manifest is not None:
            _compare_versions(entry.path, manifest, say)
            return entry.path
    if any(not entry.path.exists() for entry in candidates):
        return newest_valid(
            directory, say
        )  # deleted meanwhile by a run that goes on, which has written newer ones
    return None


def best_valid(directory: Path, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The checkpoint of the best model in `directory`, or where there is none that is whole, the newest."""
    best = pointed(directory, BEST)
    entry = next((entry for entry in entries(directory) if entry.path == best), None)
    if entry is not None and (manifest := _whole(entry, say)) is not None:
        _compare_versions(entry.path, manifest, say)
        return entry.path
    return newest_valid(directory, say)


def _whole(entry: Entry, say: Callable[[str], None]) -> Manifest | None:
    try:
        if entry.manifest is None:
            raise Damaged(entry.damage)
        return verify(entry.path)
    except Damaged as damage:
        if entry.path.exists():
            say(f"checkpoint {entry.path} is passed over: {damage}")
        return None


def _compare_versions(path: Path, manifest: Manifest, say: Callable[[str], None]) -> None:
    for package, here in (("tutti", __version__), ("torch", torch.__version__)):
        there = manifest.versions.get(package, "?")
        if there != here:
            say(f"checkpoint {path} was written with {package} {there}; this is {package} {here}")


def load(
    path: Path,
    state: dict[str, Any],
    group: dist.ProcessGroup | None = None,
    *,
    others: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Fill `state` in place from the checkpoint at `path`; returns its meta, with `saved_with` (versions)
    added.

    Tensors of `state` say what is wanted and where it goes: plain or DTensors of any mesh, whatever was
    saved. Plain values are replaced. Top-level keys of the checkpoint that `state` does not have are left
    out, and so is what `others` (stages of a pipeline) take. `group`: its ranks load together, and an error on one is
    raised on all; without it every process loads by itself, which needs no collectives, also for DTensors. The
    content is not verified here: see `newest_valid` and `verify`.

    Raises:
        CheckpointError: `path` is no whole checkpoint, or one of another model (names or shapes differ).
    """
    try:
        manifest = read_manifest(path)
    except Damaged as damage:
        raise CheckpointError(
            f"{path} cannot be loaded: {damage}",
            "choose another checkpoint, or --resume to take the newest whole one",
        ) from None
    try:
        dcp_load(
            state,
            storage_reader=FileSystemReader(path),
            planner=_ComparingPlanner(path, others),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        _, (cause, _) = sorted(error.failures.items())[0]
        if isinstance(cause, CheckpointError):
            raise cause from None
        raise CheckpointError(
            f"{path} cannot be loaded: {type(cause).__name__}: {cause}",
            "check the disk; --resume verifies every file",
        ) from error
    return {**manifest.meta, "saved_with": manifest.versions}


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Give `model`, whole and unsharded, the weights of the checkpoint at `path`: their averages, where it has them.
    Returns and raises as `load`."""
    live = gather_state(model)["model"]
    meta = load(path, {"model": live})
    saved = frozenset(FileSystemReader(path).read_metadata().state_dict_metadata)
    averaged = {name: {AVERAGE: w} for name, w in live.items() if f"optimizer.{name}.{AVERAGE}" in saved}
    if averaged:
        load(path, {"optimizer": averaged}, others=saved)
    return meta


class _ComparingPlanner(DefaultLoadPlanner):
    """Refuses a checkpoint of another model in words, before the first byte is read."""

    def __init__(self, path: Path, others: frozenset[str]) -> None:
        super().__init__()
        self._path = path
        self._others = others

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        parts = set(self.original_state_dict)
        differences = {
            name: what
            for name, what in _differences(self.state_dict, parts, self.metadata).items()
            if name in self.state_dict or name not in self._others
        }
        if differences:
            raise _of_another_model(self._path, differences)
        return super().create_local_plan()


def _differences(wanted: dict[str, Any], parts: set[str], metadata: Metadata) -> dict[str, str]:
    """Name → what differs, for everything under the top-level keys `parts`."""
    found: dict[str, str] = {}
    saved = metadata.state_dict_metadata
    paths = metadata.planner_data or {}
    for name, entry in saved.items():
        if name not in wanted and str(paths.get(name, (name,))[0]) in parts:
            found[name] = "only in the checkpoint"
        elif name in wanted and isinstance(entry, TensorStorageMetadata) != isinstance(wanted[name], Tensor):
            found[name] = "a tensor in one, a plain value in the other"
        elif name in wanted and isinstance(entry, TensorStorageMetadata) and entry.size != wanted[name].shape:
            found[name] = f"{tuple(entry.size)} in the checkpoint, {tuple(wanted[name].shape)} here"
    return found | {name: "not in the checkpoint" for name in wanted if name not in saved}


def _of_another_model(path: Path, differences: dict[str, str]) -> CheckpointError:
    shown = "; ".join(f"{name}: {what}" for name, what in list(differences.items())[:_SHOWN])
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    other = "optimizer" if all(name.startswith("optimizer.") for name in differences) else "model"
    return CheckpointError(
        f"{path} was saved with another {other} ({shown}{more})",
        "resume with the configuration that the run was started with (its config.yaml), "
        "or start a new run with name=OTHER",
    )
