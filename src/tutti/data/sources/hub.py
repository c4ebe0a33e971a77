"""Data sets of the Hugging Face hub, or in its formats on this disk, as records: `hf:NAME`, by the library `datasets`.

    hf:conll2003                                     its split `train`
    hf:nyu-mll/glue?name=sst2&split=validation       a configuration and a split
    hf:folder-on-this-disk                           what `save_to_disk` wrote, or files that `load_dataset` knows

Labels that are stored as numbers come by their names. The hub's own cache is used; there is no streaming, for examples
are read more than once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from tutti.core.errors import DataError
from tutti.core.record import Record
from tutti.data.settings import HUB

_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEYS = ("name", "split", "revision")


class Address(NamedTuple):
    """A split of a data set."""

    path: str
    split: str = "train"
    name: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, entry: str) -> Address:
        """From `hf:…`.

        Raises:
            DataError: it names nothing, or has keys that there are not.
        """
        path, _, query = entry.removeprefix(HUB).partition("?")
        named = dict(parse_qsl(query, keep_blank_values=True))
        if not path or set(named) - set(_KEYS) or "" in named.values():
            raise DataError(
                f"{entry} is no address of a data set",
                f"write hf:NAME, or hf:NAME?split=validation; the keys are {', '.join(_KEYS)}",
            )
        return cls(path, **named)


def version_of(entry: str) -> str | None:
    """What changes when the data set at `entry` does; None: that cannot be told without fetching it."""
    address = Address.of(entry)
    folder = Path(address.path).expanduser()
    if folder.is_dir():
        times = [path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()]
        return f"{len(times)} {max(times, default=0)}"
    return address.revision if address.revision and _COMMIT.fullmatch(address.revision) else None


def read_hub(entry: str) -> Iterator[Record]:
    """The records of the data set at `entry`, in order.

    Raises:
        DataError: the library is not installed, there is no such data set or split, or it cannot be fetched.
    """
    table = _load(entry)
    names = {column: found for column, feature in table.features.items() if (found := _names(feature))}
    for number, row in enumerate(table):
        for column, known in names.items():
            row[column] = _named(row[column], known, f"{entry}, row {number}", column)
        yield Record(f"{entry}, row {number}", row)


def _load(entry: str) -> Any:
    try:
        import datasets as library
    except ImportError as error:
        raise DataError(f"{entry} needs the library datasets", "pip install 'tutti[hub]'") from error
    address = Address.of(entry)
    datasets: Any = library  # its types are not exported
    datasets.disable_progress_bars()
    folder = Path(address.path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            return saved[address.split] if isinstance(saved, datasets.DatasetDict) else saved
        path = str(folder) if folder.is_dir() else address.path
        return datasets.load_dataset(path, address.name, split=address.split, revision=address.revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{entry} cannot be had: {said or type(error).__name__}",
            "check name and split (hf:NAME?name=CONFIGURATION&split=SPLIT) and, for what is not on this disk, the "
            "connection; what was fetched once is found again without one",
        ) from error


def _names(feature: Any) -> list[str] | None:
    """The names of the labels that a column's `feature` stores as numbers, alone or in lists; None: it does not."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _named(value: Any, names: list[str], origin: str, column: str) -> Any:
    if isinstance(value, list):
        return [_named(one, names, origin, column) for one in value]
    if value is None or value < 0:
        raise DataError(
            f"{origin} has no label in '{column}': its authors keep that of this split to themselves",
            "name another split, such as hf:NAME?split=validation",
        )
    return names[value]
