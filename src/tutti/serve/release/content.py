"""What the model of a version is made of, what that came from, and whether it is still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tutti.config import load_config
from tutti.core.errors import CheckpointError, ModelError, TuttiError
from tutti.core.rundir import RunDirectory
from tutti.package import Package, is_package
from tutti.serve.release.version import FileMark, Lineage, Version
from tutti.train import checkpoints
from tutti.train.checkpoints.manifest import hash_file
from tutti.trained import export_in_use, trained_checkpoint


def require_unchanged(version: Version) -> None:
    """Raises ModelError where the model of `version` is gone, or is another one than was deployed."""
    again = f"deploy it again: tutti deploy {version.place} --to DIR; or go back: tutti rollback DIR"
    place = Path(version.place)
    if not place.is_dir():
        raise ModelError(f"version {version.version} is gone: there is no {place} any more", again)
    try:
        now = {path.relative_to(place).as_posix(): path for path in _files_of(place)}
        for mark in version.files:
            path = now.pop(mark.name, None)
            if path is None:
                raise ModelError(
                    f"version {version.version} has changed: {mark.name} is gone from {place}", again
                )
            if path.stat().st_size != mark.size_bytes or hash_file(path) != mark.xxh3_128:
                raise ModelError(
                    f"version {version.version} has changed: {place / mark.name} is not what was deployed",
                    again,
                )
    except OSError as error:
        raise ModelError(f"version {version.version} cannot be read: {error}", again) from error
    if now:
        raise ModelError(f"version {version.version} has changed: {place / min(now)} is new there", again)


def marks_of(place: Path) -> tuple[FileMark, ...]:
    """The files that the model of `place` is loaded from.

    Raises:
        TuttiError: there is no model, or it cannot be read.
    """
    try:
        return tuple(
            FileMark(
                name=path.relative_to(place).as_posix(),
                size_bytes=path.stat().st_size,
                xxh3_128=hash_file(path),
            )
            for path in _files_of(place)
        )
    except OSError as error:
        raise ModelError(f"{place} cannot be read: {error}") from error


def lineage_of(place: Path) -> Lineage:
    """What the model of `place` came from.

    Raises:
        TuttiError: there is no model.
    """
    if is_package(place):
        made = Package.read(place).made_from
        run = made.get("run") or ", ".join(made.get("runs", ())) or None
        step = made.get("step")
        return Lineage(run=run, step=step, config_sha256=_sha256(place / "tutti.json"), data=made.get("data"))
    if (place / "config.json").is_file():
        return Lineage(run=None, step=None, config_sha256=_sha256(place / "config.json"), data=None)
    meta = checkpoints.read_manifest(_checkpoint_of(place)).meta
    return Lineage(
        run=place.resolve().name,
        step=int(meta["step"]),
        config_sha256=_sha256(RunDirectory(place).config),
        data=str(meta["identity"]["data"]),
    )


def _files_of(place: Path) -> list[Path]:
    """Every file that matters, in order."""
    if is_package(place) or (place / "config.json").is_file():
        return sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    loaded = export_in_use(place) or _checkpoint_of(place)
    return [RunDirectory(place).config, *sorted(path for path in loaded.rglob("*") if path.is_file())]


def _checkpoint_of(run: Path) -> Path:
    """That of which `load_trained` takes the model."""
    directory = RunDirectory(run)
    directory.require()
    found = trained_checkpoint(directory, load_config(directory.config))
    if found is None:
        raise CheckpointError(
            f"{run} has no sound checkpoint", "train it first, or continue it with --resume"
        )
    return found


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TuttiError(f"{path} cannot be read: {error.strerror}") from error
