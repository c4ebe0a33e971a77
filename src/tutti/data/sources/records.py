"""Records of a file, whatever its format: named fields, and where they stand.

JSONL: an object a line. CSV and TSV: a row, by the names in the first; quotes may span lines. CoNLL: a sentence of
lines `token … tag`, ended by an empty line: fields `tokens` and `tags`. JSON: a list of objects, or SQuAD's
articles: a record for each question. Parquet, and data sets of the hub: a row.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tutti.core.errors import DataError
from tutti.core.record import Record
from tutti.data.compressed import READ_ERRORS
from tutti.data.listing import SourceFile, UnreadableFile, open_binary, unreadable
from tutti.data.reading import too_much
from tutti.data.remote import RemoteCache
from tutti.data.settings import FORMATS
from tutti.data.sources.hub import read_hub

_LARGEST_CELL = 1 << 24


class BadRow(DataError):
    """A row that is broken, behind which reading can go on."""


def read_records(file: SourceFile, encoding: str) -> Iterator[Record]:
    """The records of `file`, in order. Bytes that `encoding` cannot decode come as lone surrogates.

    Raises:
        DataError: it is not of its format; says in which line.
    """
    for row in read_rows(file, encoding):
        if isinstance(row, BadRow):
            raise row
        yield row


def read_rows(
    file: SourceFile, encoding: str, remote: RemoteCache | None = None
) -> Iterator[Record | BadRow]:
    """As `read_records`, but what is wrong with one row comes in its place.

    Raises:
        DataError: the whole file is not of its format.
    """
    if file.kind == "hub":
        yield from read_hub(file.name)
        return
    if file.kind == "parquet":
        yield from _parquet(file.name)
        return
    reader: Callable[[io.TextIOWrapper, str], Iterator[Record | BadRow]] | None = _READERS.get(file.kind)
    if reader is None:
        raise DataError(
            f"{file.name} holds no labelled examples: its format is {file.kind}",
            f"give files that end in {', '.join(sorted(FORMATS))}, or set data.format",
        )
    with open_binary(file.name, remote) as binary:
        encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
        text = io.TextIOWrapper(binary, encoding, "surrogateescape", newline="")
        try:
            yield from reader(text, file.name)
        except READ_ERRORS as error:
            raise unreadable(file.name, error) from error


def read_jsonl(text: Iterable[str], name: str) -> Iterator[Record]:
    """The objects in the lines of `text`, which messages call `name`; raises as `read_records`."""
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        origin = f"{name}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = (
                f"is no JSON: {error.msg} at column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else too_much(error)
            )
            raise DataError(f"{origin} {what}", "mend or delete the line") from error
        yield _object(origin, value)


def _object(origin: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{origin} is no object but {json.dumps(value)[:60]}",
            'each must be like {"text": "…", "label": "…"}',
        )
    return Record(origin, value)


class _Lines:
    """Lines of a text, which can be taken back to where the last row began."""

    def __init__(self, text: Iterable[str]) -> None:
        self._text = iter(text)
        self._ahead: deque[str] = deque()
        self._row: list[str] = []
        self.begins = 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._text)
        self._row.append(line)
        return line

    def done(self) -> None:
        """The next row begins behind the last line."""
        self.begins += len(self._row)
        self._row.clear()

    def retry(self) -> None:
        """The next row begins behind the first line of the last one."""
        self._ahead.extendleft(reversed(self._row[1:]))
        del self._row[1:]
        self.done()


def _table(text: Iterable[str], name: str, separator: str) -> Iterator[Record | BadRow]:
    csv.field_size_limit(_LARGEST_CELL)
    lines = _Lines(text)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise DataError(f"{name}:1 cannot be read: {error}", "check the double quotes around it") from error
    if header is None:
        raise DataError(f"{name} is empty", "its first line must name the columns")
    if len(set(header)) != len(header) or "" in header:
        raise DataError(
            f"{name}:1 does not name the columns: {separator.join(header)[:80]}",
            "give each column a name of its own in the first line",
        )
    lines.done()
    while True:
        origin = f"{name}:{lines.begins}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # its first line alone is broken: a quote may have swallowed what follows
            yield BadRow(f"{origin} cannot be read: {error}", "check the double quotes around it")
            lines.retry()
            continue
        lines.done()
        if row and len(row) != len(header):
            yield BadRow(
                f"{origin} has {len(row)} columns, the first line {len(header)} ({', '.join(header)})",
                "mend the line; text with separators or line ends in it has to stand in double quotes",
            )
        elif row:
            yield Record(origin, dict(zip(header, row, strict=True)))


def _csv(text: io.TextIOWrapper, name: str) -> Iterator[Record | BadRow]:
    return _table(text, name, ",")


def _tsv(text: io.TextIOWrapper, name: str) -> Iterator[Record | BadRow]:
    return _table(text, name, "\t")


def _conll(text: io.TextIOWrapper, name: str) -> Iterator[Record]:
    tokens: list[str] = []
    tags: list[str] = []
    first = 1
    for number, line in enumerate(text, 1):
        # Only what separates columns: tokens may hold any other kind of space.
        columns = line.rstrip("\r\n").split("\t" if "\t" in line else " ")
        columns = [column for column in columns if column]
        if not columns or columns[0] == "-DOCSTART-":
            if tokens:
                yield Record(f"{name}:{first}", {"tokens": tokens, "tags": tags})
            tokens, tags, first = [], [], number + 1
            continue
        if len(columns) == 1:
            raise DataError(
                f"{name}:{number} has a token without a tag: {columns[0][:40]!r}",
                "each line must be `token tag`, separated by a tab or spaces",
            )
        tokens.append(columns[0])
        tags.append(columns[-1].strip())
    if tokens:
        yield Record(f"{name}:{first}", {"tokens": tokens, "tags": tags})


def _json(text: io.TextIOWrapper, name: str) -> Iterator[Record]:
    try:
        value = json.load(text)
    except (ValueError, RecursionError) as error:
        what = (
            f"is no JSON: line {error.lineno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else too_much(error)
        )
        raise DataError(f"{name} {what}", "mend the file") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        yield from _squad(value["data"], name)
        return
    if not isinstance(value, list):
        raise DataError(f"{name} is neither a list of objects nor SQuAD's `data`", "convert it to JSONL")
    for number, item in enumerate(value, 1):
        yield _object(f"{name}, item {number}", item)


def _squad(articles: list[Any], name: str) -> Iterator[Record]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield Record(
                        f"{name}, question {question['id']}",
                        {
                            "question": question["question"],
                            "context": paragraph["context"],
                            "answers": question.get("answers", []),
                        },
                    )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{name} is not as SQuAD has it: {type(error).__name__} {error}",
            "articles have paragraphs, these a context and qas, these an id, a question and answers",
        ) from error


def _parquet(name: str) -> Iterator[Record]:
    number = 0
    with open_parquet(name) as table:
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{name}, row {number}", row)


@contextmanager
def open_parquet(name: str, remote: RemoteCache | None = None) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: pyarrow is not installed, or the table is damaged (also while it is open).
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{name} is a Parquet table, and pyarrow is not installed", "pip install 'tutti[data]'"
        ) from error
    with open_binary(name, remote) as binary:
        try:
            yield pyarrow.parquet.ParquetFile(binary)  # type: ignore[no-untyped-call]
        except (pyarrow.lib.ArrowException, OSError) as error:
            raise UnreadableFile(
                f"{name} is a damaged Parquet table: {error}", "fetch or write it again"
            ) from error


_READERS: dict[str, Callable[[io.TextIOWrapper, str], Iterator[Record | BadRow]]] = {
    "jsonl": read_jsonl,
    "csv": _csv,
    "tsv": _tsv,
    "conll": _conll,
    "json": _json,
}
