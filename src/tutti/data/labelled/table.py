"""Rows of whole numbers: each column is all rows behind each other, and where each of them ends; memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.data.npy import NpyWriter
from tutti.tasks.task import Row

_EXAMPLE = "example"


class Table:
    """The rows in a directory that `write_table` wrote, of which `columns` are the names."""

    def __init__(self, directory: Path, columns: Sequence[str]) -> None:
        self.example: NDArray[np.int64] = np.load(directory / f"{_EXAMPLE}.npy")
        self._columns = {
            name: (_mapped(directory / f"{name}.npy"), _bounds(directory, name)) for name in columns
        }

    def __len__(self) -> int:
        return len(self.example)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens [rows] of each."""
        return np.diff(self._columns["input_ids"][1])

    def __getitem__(self, number: int) -> Row:
        return {
            name: values[bounds[number] : bounds[number + 1]].tolist()
            for name, (values, bounds) in self._columns.items()
        }


class ListedRows:
    """Rows in memory, of the examples `example` [rows]."""

    def __init__(self, rows: Iterable[list[Row]]) -> None:
        numbered = [(number, row) for number, of_example in enumerate(rows) for row in of_example]
        self.example = np.array([number for number, _ in numbered], dtype=np.int64)
        self._rows = [row for _, row in numbered]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:
        return self._rows[number]


def write_table(directory: Path, rows: Iterable[list[Row]]) -> list[str]:
    """Write the rows of each example (all with the same columns); returns the names of the columns."""
    writers: dict[str, tuple[NpyWriter, NpyWriter]] = {}
    with ExitStack() as open_, NpyWriter(directory / f"{_EXAMPLE}.npy", np.int64) as examples:
        for number, of_example in enumerate(rows):
            for row in of_example:
                if not writers:
                    for name in row:
                        pair = (
                            NpyWriter(directory / f"{name}.npy", np.int32),
                            NpyWriter(directory / f"{name}.ends.npy", np.int64),
                        )
                        writers[name] = (open_.enter_context(pair[0]), open_.enter_context(pair[1]))
                examples.append([number])
                for name, (values, ends) in writers.items():
                    values.append(row[name])
                    ends.append([values.length])
    return list(writers)


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array.view(np.ndarray)


def _bounds(directory: Path, name: str) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.load(directory / f"{name}.ends.npy")])
