"""Compressed files, read as what is in them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import zstandard

from tutti.core.address import is_url

_READ_BYTES = 1 << 18
#: Of Zstandard's memory of what came before, at most: `zstd --long=31` takes as much, and many large corpora have it.
_WINDOW_BYTES = 1 << 31

#: What reading can raise; the last four where a compressed file is damaged or ends too early.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class _Zstandard(io.RawIOBase):
    """The library's own reader takes a file that ends too early for one that ends."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._file.read(_READ_BYTES)
            if not block:
                if self._decoder is not None and not self._decoder.eof:
                    raise EOFError("it ends before its end was reached")
                return 0
            self._ready = self._decompress(block)
        given, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)

    def _decompress(self, block: bytes) -> bytes:
        parts = []
        while block:  # frames may follow each other
            if self._decoder is None or self._decoder.eof:
                self._decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
            parts.append(self._decoder.decompress(block))
            block = self._decoder.unused_data if self._decoder.eof else b""
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: io.BufferedReader(_Zstandard(file), _READ_BYTES),
}
#: How names of compressed files end.
COMPRESSIONS = tuple(_OPENERS)


def file_name(name: str) -> str:
    """The path in `name`: of an address on the web without what follows a question mark, such as `?download=true`."""
    return urlsplit(name).path if is_url(name) else name


def is_compressed(name: str) -> bool:
    """Whether the ending of `name` says so."""
    return file_name(name).lower().endswith(COMPRESSIONS)


def inner_name(name: str) -> str:
    """`file_name` without the ending of a compression."""
    name = file_name(name)
    return name[: -len(PurePath(name).suffix)] if is_compressed(name) else name


def decompressed(name: str, file: BinaryIO) -> BinaryIO:
    """What is in `file`, by the ending of its name."""
    if not is_compressed(name):
        return file
    return cast(BinaryIO, _OPENERS[PurePath(file_name(name)).suffix.lower()](file))
