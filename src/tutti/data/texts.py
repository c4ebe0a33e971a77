"""The text of a segment, read again where it lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from tutti.core.errors import DataError
from tutti.data.compressed import READ_ERRORS
from tutti.data.content import Digest, start_digest
from tutti.data.listing import SourceFile, open_binary, unreadable
from tutti.data.pieces import pieces
from tutti.data.reading import Mark, TextSettings, read_python, read_text, text_of_line


class SegmentReader:
    """Gives the pieces of segments. Keeps one JSONL file open, since neighbours come from the same file."""

    def __init__(self, files: list[SourceFile], marks: list[Mark], settings: TextSettings) -> None:
        self._files = files
        self._marks = marks
        self._settings = settings
        self._open: tuple[str, BinaryIO] | None = None

    def pieces(self, row: Any) -> Iterator[str]:
        """Pieces of the text of one row of a segment table.

        Raises:
            DataError: the text is no longer there or is not what it was; known when its last piece was given.
        """
        file = self._files[int(row["file"])]
        digest = start_digest()
        if file.kind in ("jsonl", "ready"):
            read = self._line if file.kind == "jsonl" else self._ready
            text = read(file, int(row["offset"]), int(row["length"]))
            digest.update(text.encode())
            yield from pieces([text[int(row["start"]) : int(row["stop"])]])
        else:
            yield from self._stream(file, row, digest)
        if digest.digest() != row["hash"].tobytes():
            raise changed(file.name)

    def _stream(self, file: SourceFile, row: Any, digest: Digest) -> Iterator[str]:
        """Pieces of a file that is one document; all of the segment, also of what is not given, goes into `digest`."""
        before = int(row["before"])
        start, stop = int(row["start"]), int(row["stop"])
        mark = self._marks[int(row["mark"])] if row["mark"] >= 0 else Mark()
        if file.kind == "python":
            chunks: Iterable[str] = read_python(file.name)
        else:
            chunks = (text for text, _ in read_text(file.name, self._settings, mark))
        begin, end = start - before, stop + int(row["behind"])
        segment = _digested(_window(chunks, begin - mark.characters, end - mark.characters), digest)
        yield from pieces(_window(segment, before, stop - begin))
        for _ in segment:
            pass

    def close(self) -> None:
        """Close what is open."""
        if self._open:
            self._open[1].close()
            self._open = None

    def _bytes(self, file: SourceFile, offset: int, length: int) -> bytes:
        if self._open is None or self._open[0] != file.name:
            self.close()
            self._open = (file.name, open_binary(file.name, self._settings.remote))
        stream = self._open[1]
        try:
            stream.seek(offset)
            return stream.read(length)
        except READ_ERRORS as error:
            raise unreadable(file.name, error) from error

    def _ready(self, file: SourceFile, offset: int, length: int) -> str:
        try:
            return self._bytes(file, offset, length).decode()
        except UnicodeDecodeError:
            raise changed(file.name) from None

    def _line(self, file: SourceFile, offset: int, length: int) -> str:
        line = self._bytes(file, offset, length)
        with suppress(DataError):
            return text_of_line(file.name, 0, offset, line, self._settings)
        raise changed(file.name)  # the first pass could read this line


def changed(name: str) -> DataError:
    """A source that is not what it was a moment ago."""
    return DataError(f"{name} changed while it was being prepared", "run the same command again")


def _digested(chunks: Iterable[str], digest: Digest) -> Iterator[str]:
    """`chunks`, which go into `digest` on the way."""
    for chunk in chunks:
        digest.update(chunk.encode())
        yield chunk


def _window(chunks: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """Characters [start, stop) of the joined `chunks`."""
    at = 0
    for chunk in chunks:
        if at + len(chunk) > start:
            yield chunk[max(0, start - at) : stop - at]
        at += len(chunk)
        if at >= stop:
            return
