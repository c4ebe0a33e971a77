"""The documents of a stretch of a file, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tutti.core.errors import DataError
from tutti.data.reading import TextSettings
from tutti.data.sources import lines, tables, whole
from tutti.data.sources.document import Bad, Document, Stretch

_Read = Callable[[Stretch, TextSettings], Iterator[Document | Bad]]
_READERS: dict[str, _Read] = {
    "text": whole.read_whole,
    "code": whole.read_whole,
    "python": whole.read_whole,
    "html": whole.read_whole,
    "pdf": whole.read_whole,
    "jsonl": lines.read_stretch,
    "csv": tables.read_table,
    "tsv": tables.read_table,
    "json": tables.read_table,
    "hub": tables.read_table,
    "parquet": tables.read_parquet,
}


def documents(stretch: Stretch, settings: TextSettings) -> Iterator[Document | Bad]:
    """What is in `stretch`, in order; rows that `settings` allow to be left out come as `Bad`.

    Raises:
        DataError: what cannot be read, with file and row (`UnreadableFile`, `BadText`: a policy may leave it out).
    """
    reader = _READERS.get(stretch.file.kind)
    if reader is None:
        raise DataError(
            f"{stretch.file.name} holds labelled examples, not raw text: its format is {stretch.file.kind}",
            "set task, or leave the file out of data.source",
        )
    return reader(stretch, settings)


def cut(stretch: Stretch, aim_bytes: int, settings: TextSettings) -> list[Stretch]:
    """A large file in stretches of about `aim_bytes` that can be read at the same time, where its format allows."""
    if stretch.file.kind == "jsonl":
        return lines.cut(stretch.file, aim_bytes)
    if stretch.file.kind == "parquet":
        return tables.cut(stretch.file, aim_bytes, settings)
    return [stretch]
