"""One version of what is served, as it is written down: which model it is, and what that came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

_FORM = ConfigDict(extra="forbid", strict=True, frozen=True)


class FileMark(BaseModel):
    """A file of the model, and what its content is known by: xxh3_128, in hexadecimal."""

    model_config = _FORM
    name: str
    size_bytes: int
    xxh3_128: str


class Lineage(BaseModel):
    """What a model came from. `run`, `step`: None of a model that no run of Tutti made; `config_sha256`: of the file
    that says what the model is; `data`: the fingerprint of what it learned from."""

    model_config = _FORM
    run: str | None
    step: int | None
    config_sha256: str
    data: str | None


class Version(BaseModel):
    """`place`: where the model lies. `deployed`: seconds since 1970. `weights`: one hash of all `files`."""

    model_config = _FORM
    version: int
    place: str
    lineage: Lineage
    weights: str
    files: tuple[FileMark, ...]
    deployed: float
    by: str
    note: str = ""


def weights_of(marks: Sequence[FileMark]) -> str:
    """One hash of all `marks`."""
    lines = "".join(f"{mark.xxh3_128}  {mark.name}\n" for mark in marks)
    return hashlib.sha256(lines.encode()).hexdigest()
