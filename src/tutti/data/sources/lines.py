"""JSONL: a document a line, in stretches of bytes."""

from __future__ import annotations

from collections.abc import Iterator

from tutti.core.errors import DataError
from tutti.data.compressed import READ_ERRORS, is_compressed
from tutti.data.listing import SourceFile, is_url, open_binary, unreadable
from tutti.data.reading import BadText, TextSettings, read_lines, text_of_line
from tutti.data.sources.document import Bad, Document, Stretch

_COUNT_BYTES = 1 << 20


def read_stretch(stretch: Stretch, settings: TextSettings) -> Iterator[Document | Bad]:
    """The texts of the lines that begin in `stretch`; raises as `reading.text_of_line`."""
    name = stretch.file.name
    with open_binary(name, settings.remote) as file:
        try:
            if stretch.start:
                file.seek(stretch.start - 1)
                file.readline()
            first = file.tell() if stretch.start else 0
            for number, offset, line in read_lines(file, first):
                if 0 <= stretch.stop <= offset:
                    return
                try:
                    yield Document(text_of_line(name, number, offset, line, settings), number)
                except DataError as error:
                    reason = left_out(error, settings)
                    if reason is not None:
                        yield Bad(number, reason)
                        continue
                    if first:  # say which line of the file it is
                        before = _lines_before(name, first, settings)
                        text_of_line(name, before + number, offset, line, settings)
                    raise
        except READ_ERRORS as error:
            raise unreadable(name, error) from error


def left_out(error: DataError, settings: TextSettings) -> str | None:
    """Why a line with that `error` is left out, in short; None: `settings` have it refused."""
    if isinstance(error, BadText):
        return error.reason if settings.on_bad_encoding == "skip" else None
    return "bad row" if settings.on_bad_row == "skip" else None


def cut(file: SourceFile, aim_bytes: int) -> list[Stretch]:
    """Stretches of equal size; of a compressed or distant file one."""
    pieces = max(1, round(file.size / aim_bytes))
    if pieces == 1 or is_compressed(file.name) or is_url(file.name):
        return [Stretch(file)]
    bounds = [file.size * piece // pieces for piece in range(pieces)]
    return [Stretch(file, low, high) for low, high in zip(bounds, [*bounds[1:], -1], strict=True)]


def _lines_before(name: str, offset: int, settings: TextSettings) -> int:
    count = 0
    with open_binary(name, settings.remote) as file:
        while offset > 0 and (block := file.read(min(offset, _COUNT_BYTES))):
            count += block.count(b"\n")
            offset -= len(block)
    return count
