"""Tables and data sets of the hub: the text of one column, a document a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tutti.core.errors import DataError
from tutti.data.listing import SourceFile, UnreadableFile
from tutti.data.reading import BadText, TextSettings, without_surrogates
from tutti.data.sources.document import Bad, Document, Stretch
from tutti.data.sources.records import BadRow, open_parquet, read_rows

_NUMBER = re.compile(r"\d+")
_BATCH_ROWS = 1024


def read_table(stretch: Stretch, settings: TextSettings) -> Iterator[Document | Bad]:
    """The texts of CSV, TSV, JSON and data sets of the hub."""
    for row in read_rows(stretch.file, settings.encoding, settings.remote):
        origin = row.problem if isinstance(row, BadRow) else row.origin
        found = _NUMBER.search(origin, len(stretch.file.name))
        number = int(found[0]) if found else 0
        if isinstance(row, BadRow):
            if settings.on_bad_row == "fail":
                raise BadRow(row.problem, f"{row.hint}, or set data.on_bad_row: skip")
            yield Bad(number, "bad row")
        else:
            if settings.text_field not in row.fields:
                raise _no_column(stretch.file.name, settings, list(row.fields))
            yield from _document(row.origin, number, row.fields[settings.text_field], settings)


def read_parquet(stretch: Stretch, settings: TextSettings) -> Iterator[Document | Bad]:
    """The texts of row groups; other columns are not read."""
    name, column = stretch.file.name, settings.text_field
    with open_parquet(name, settings.remote) as table:
        names = list(table.schema_arrow.names)
        if column not in names:
            raise _no_column(name, settings, names)
        stop = table.num_row_groups if stretch.stop < 0 else stretch.stop
        groups = list(range(stretch.start, stop))
        number = 0
        for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[column]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield from _document(stretch.place(number), number, text, settings)


def cut(file: SourceFile, aim_bytes: int, settings: TextSettings) -> list[Stretch]:
    """Row groups together that have about `aim_bytes`; a table that cannot be opened in one piece."""
    try:
        with open_parquet(file.name, settings.remote) as table:
            sizes = [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]
    except UnreadableFile:
        return [Stretch(file)]
    found, first, held = [], 0, 0
    for group, size in enumerate(sizes):
        if held and held + size > aim_bytes:
            found.append(Stretch(file, first, group))
            first, held = group, 0
        held += size
    return [*found, Stretch(file, first)]


def _document(where: str, number: int, text: Any, settings: TextSettings) -> Iterator[Document | Bad]:
    """The text of a cell, or why it is left out."""
    if isinstance(text, bytes):
        try:
            text = text.decode(settings.encoding, settings.errors)
        except UnicodeDecodeError:
            text = "\ud800"  # as what does not decode comes from text files
    if not isinstance(text, str):
        if settings.on_bad_row == "fail":
            raise BadRow(
                f"{where}: '{settings.text_field}' is {'null' if text is None else 'no text'}",
                "set data.text_field, or data.on_bad_row: skip",
            )
        yield Bad(number, "no text")
        return
    try:
        yield Document(without_surrogates(text, where, settings), number)
    except BadText as error:
        if settings.on_bad_encoding != "skip":
            raise
        yield Bad(number, error.reason)


def _no_column(name: str, settings: TextSettings, names: list[str]) -> DataError:
    return DataError(
        f"{name} has no column '{settings.text_field}'",
        f"set data.text_field to one of its columns: {', '.join(names[:8])}",
    )
