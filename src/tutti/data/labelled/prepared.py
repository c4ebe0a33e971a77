"""Prepared examples, opened: tokenizer, labels, and of each part its rows and its examples."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import DataError
from tutti.data.labelled.table import Table
from tutti.data.prepared import TOKENIZER
from tutti.tasks.task import Example, Labels

MANIFEST = "manifest.json"
EXAMPLES = "examples.jsonl"
VECTORS = "vectors.npy"


@dataclass(frozen=True)
class Part:
    """Training, validation or test examples. `cut`: examples that were too long for one row."""

    directory: Path
    examples: int
    rows: int
    tokens: int
    cut: int
    columns: tuple[str, ...]

    @cached_property
    def table(self) -> Table:
        """The rows."""
        return Table(self.directory, self.columns)

    def read(self) -> list[Example]:
        """The examples, in order."""
        with (self.directory / EXAMPLES).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


@dataclass(frozen=True)
class PreparedExamples:
    """A complete directory of prepared examples. `manifest`: what `prepare_examples` wrote of them.

    `counts`: what was read and left out; `remarks`: what the user should know of that. Both are of this reading, and
    empty where only the directory was opened: other files may come to the same examples.
    """

    directory: Path
    manifest: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def tokenizer_directory(self) -> Path:
        """A Hugging Face tokenizer directory."""
        return self.directory / TOKENIZER

    @property
    def fingerprint(self) -> str:
        """Names examples, labels and tokens."""
        return str(self.manifest["fingerprint"])

    @property
    def labels(self) -> Labels:
        """Of the training examples."""
        return Labels(tuple(self.manifest["labels"]), tuple(self.manifest["label_counts"]))

    @property
    def pad(self) -> int:
        """The number of the token that stands for nothing."""
        return int(self.manifest["pad"])

    @property
    def end_token(self) -> int:
        """The token that ends a text."""
        return int(self.manifest["end"])

    @property
    def stops(self) -> tuple[int, ...]:
        """What else ends what a model is to write: a turn in a talk."""
        stop = self.manifest["stop"]
        return () if stop in (None, self.end_token) else (int(stop),)

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return int(self.manifest["vocabulary"])

    @property
    def parts(self) -> dict[str, Part]:
        """`train`, and `validation` and `test` where there are examples of them."""
        return {
            name: Part(self.directory / name, **(part | {"columns": tuple(part["columns"])}))
            for name, part in self.manifest["parts"].items()
        }

    @property
    def vectors(self) -> NDArray[np.float32] | None:
        """[labels, any]: what is said of each label; None: nothing is."""
        path = self.directory / VECTORS
        return np.load(path) if path.exists() else None

    def rows(self, part: str) -> int:
        """How many rows `part` has; 0 where there is no such part."""
        return self.parts[part].rows if part in self.parts else 0

    @property
    def choices(self) -> list[str]:
        """What was chosen, and what the user should know of the examples."""
        # An older version wrote `choices`, with what it had to say of the files that it read.
        return [*self.remarks, *self.manifest.get("chosen", ())]


def digest(value: Any) -> str:
    """Names `value` (anything that JSON can say)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def open_examples(directory: Path) -> PreparedExamples:
    """Open what `prepare_examples` wrote.

    Raises:
        DataError: it is incomplete or damaged.
    """
    path = directory / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        manifest, sealed = value["manifest"], value["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"there are no prepared examples at {directory}", "run again: they are prepared anew"
        ) from error
    missing = [name for name, size in manifest["files"].items() if _size(directory / name) != size]
    if sealed != digest(manifest) or missing:
        raise DataError(
            f"the prepared examples at {directory} are damaged", "delete that directory and run again"
        )
    return PreparedExamples(directory, manifest)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
