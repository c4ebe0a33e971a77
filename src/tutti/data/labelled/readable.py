"""Records whose bytes decode, and those of a file that a model is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tutti.config.data import DataConfig
from tutti.core.errors import DataError
from tutti.core.record import Record
from tutti.data.listing import list_sources
from tutti.data.settings import FORMATS
from tutti.data.sources.records import read_records

_REPLACEMENT = "\ufffd"


def read_file(path: Path, data: DataConfig) -> Iterator[Record]:
    """The records of a file, folder, glob or URL, as the format of each says, with the encoding of `data`; raises as
    `read_records` and `to_be_asked`."""
    for file in list_sources(DataConfig(), str(path), tuple(FORMATS)):
        yield from to_be_asked(read_records(file, data.encoding), data)


def to_be_asked(records: Iterable[Record], data: DataConfig) -> Iterator[Record]:
    """`records`, of which none is left out: each waits for its answer.

    Raises:
        DataError: one does not decode, and `data` does not say `on_bad_encoding: replace`.
    """
    for record in records:
        found = readable(record, "replace" if data.on_bad_encoding == "replace" else "skip")
        if found is None:
            raise DataError(
                f"{record.origin} does not decode",
                f"write the file in {data.encoding}, which the model's data was read with",
            )
        yield found


def readable(record: Record, policy: Literal["fail", "skip", "replace"]) -> Record | None:
    """`record` without lone surrogates, which stand for bytes that did not decode; None: leave it out."""
    if not _has_surrogates(record.fields):
        return record
    if policy == "skip":
        return None
    if policy == "replace":
        return Record(record.origin, _replaced(dict(record.fields)))
    raise DataError(
        f"{record.origin} does not decode",
        "set data.encoding (common ones are utf-8, latin-1, cp1252), or data.on_bad_encoding to skip or replace",
    )


def _has_surrogates(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value)
    if isinstance(value, dict):
        return any(map(_has_surrogates, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_surrogates, value))


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(_REPLACEMENT if "\ud800" <= sign <= "\udfff" else sign for sign in value)
    if isinstance(value, dict):
        return {key: _replaced(item) for key, item in value.items()}
    return [_replaced(item) for item in value] if isinstance(value, list | tuple) else value
