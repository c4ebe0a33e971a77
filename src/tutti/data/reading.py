"""One file as text: decoded in blocks, so that its size does not matter, with errors that name the byte.

A `Mark` is a place in a file from which decoding can go on; it makes the middle of a large file reachable.
"""

from __future__ import annotations

import codecs
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from tutti.config.data import DataConfig
from tutti.config.fields import bytes_of
from tutti.core.errors import DataError
from tutti.data.compressed import READ_ERRORS
from tutti.data.listing import open_binary, unreadable
from tutti.data.remote import RemoteCache
from tutti.data.settings import BLOCK_BYTES

_BOM = codecs.BOM_UTF8
_HEAD_BYTES = 8192
#: Control characters that text does not have (tab, line ends, form feed, backspace and escape it has).
_CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\r\f\b\x1b")))
_KNOWN_FORMATS = {
    b"\x1f\x8b": "a gzip archive; let its name end in .gz",
    b"PK\x03\x04": "a zip archive or an office document; unpack or convert it",
    b"PAR1": "a Parquet table; let its name end in .parquet, or set data.format",
    b"%PDF": "a PDF; let its name end in .pdf, or set data.format",
    b"\x28\xb5\x2f\xfd": "a zstd archive; let its name end in .zst",
}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class BadText(DataError):
    """Text that cannot be read as it stands; the policy `skip` leaves it out. `reason`: in short."""

    def __init__(self, problem: str, hint: str = "", reason: str = "") -> None:
        super().__init__(problem, hint)
        self.reason = reason


class Mark(NamedTuple):
    """After `byte` bytes of the file, `characters` characters were decoded; the decoder held the rest."""

    byte: int = 0
    characters: int = 0
    pending: bytes = b""
    state: int = 0


@dataclass(frozen=True)
class TextSettings:
    """How bytes become text (fields as in `DataConfig`)."""

    encoding: str
    on_bad_encoding: Literal["fail", "skip", "replace"]
    text_field: str
    on_bad_row: Literal["fail", "skip"] = "fail"
    on_bad_file: Literal["fail", "skip"] = "fail"
    remote: RemoteCache | None = None

    @classmethod
    def of(cls, config: DataConfig) -> TextSettings:
        """As `config` has them."""
        return cls(
            config.encoding,
            config.on_bad_encoding,
            config.text_field,
            config.on_bad_row,
            config.on_bad_file,
            RemoteCache(Path(config.cache).expanduser() / "remote", bytes_of(config.remote_cache)),
        )

    @property
    def errors(self) -> str:
        """The error handler of Python's codecs."""
        return "replace" if self.on_bad_encoding == "replace" else "strict"


def check_encoding(encoding: str) -> None:
    """Raises DataError when Python has no text encoding of that name."""
    try:
        codec = codecs.lookup(encoding)
    except LookupError:
        codec = None
    if codec is None or not getattr(codec, "_is_text_encoding", True):
        raise DataError(
            f"data.encoding: there is no text encoding '{encoding}'",
            "common ones are utf-8, latin-1, cp1252, gb18030",
        )


def read_text(name: str, settings: TextSettings, start: Mark = Mark()) -> Iterator[tuple[str, Mark]]:  # noqa: B008
    """Text of the file `name` from `start` on, in chunks, each with the mark of its end.

    Line ends are kept as they are; a UTF-8 byte order mark at the beginning is dropped.

    Raises:
        BadText: bytes that are no text, with their offset.
        DataError: the file cannot be read.
    """
    codec = codecs.lookup(settings.encoding)
    byte_oriented = not codec.name.startswith(("utf-16", "utf-32"))  # the others have no NUL bytes in text
    if codec.name == "utf-8-sig":  # the byte order mark is ours to drop, whichever of the two names is given
        codec = codecs.lookup("utf-8")
    decoder = codec.incrementaldecoder(settings.errors)
    if start.byte > 0:  # a fresh decoder's own state may mean more than (b"", 0), as UTF-16's does
        decoder.setstate((start.pending, start.state))
    at, characters = start.byte, start.characters
    with open_binary(name, settings.remote) as file:
        try:
            if at:
                file.seek(at)
            while True:
                block = file.read(BLOCK_BYTES)
                if at == 0 and block.startswith(_BOM) and codec.name == "utf-8":
                    at, block = len(_BOM), block[len(_BOM) :]
                if byte_oriented:
                    _refuse_binary(name, block, at)
                held = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise _undecodable(name, settings.encoding, error, at - held) from error
                at += len(block)
                characters += len(text)
                if text:
                    yield text, Mark(at, characters, *decoder.getstate())
                if not block:
                    return
        except READ_ERRORS as error:
            raise unreadable(name, error) from error


def read_python(name: str) -> Iterator[str]:
    """The source of a Python module, by its own declared encoding.

    Raises:
        BadText: it does not decode.
    """
    try:
        with tokenize.open(name) as file:
            while text := file.read(BLOCK_BYTES):
                yield text
    except (UnicodeDecodeError, SyntaxError) as error:
        raise BadText(f"{name} does not decode: {error}", reason="does not decode") from error
    except OSError as error:
        raise unreadable(name, error) from error


def read_lines(file: BinaryIO, offset: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, bytes) of the lines that are not blank; `offset`: where `file` stands."""
    for number, line in enumerate(file, 1):
        content = line.removeprefix(_BOM) if offset == 0 else line
        start = offset + len(line) - len(content)
        offset += len(line)
        if content.strip():
            yield number, start, content


def text_of_line(name: str, number: int, offset: int, line: bytes, settings: TextSettings) -> str:
    """The text field of one JSONL line (always UTF-8, as JSON is).

    Raises:
        DataError: no JSON, no such field, or no text in it.
        BadText: the bytes are no UTF-8, or the text is not Unicode.
    """
    where = f"{name}:{number}"
    try:
        decoded = line.decode("utf-8", settings.errors)
    except UnicodeDecodeError as error:
        _refuse_binary(name, line[:_HEAD_BYTES], offset)
        raise _undecodable(where, "utf-8", error, offset) from error
    try:
        value: Any = json.loads(decoded.rstrip())
    except json.JSONDecodeError as error:
        _refuse_binary(name, line[:_HEAD_BYTES], offset)
        raise DataError(
            f"{where} is no JSON: {error.msg} at column {error.colno}",
            "mend or delete the line, or set data.on_bad_row: skip",
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(
            f"{where} {too_much(error)}", "mend or delete the line, or set data.on_bad_row: skip"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is {_json_type(value)}, not an object", 'each line must be like {"text": "…"}'
        )
    if settings.text_field not in value:
        texts = [key for key, item in value.items() if isinstance(item, str)]
        hint = (
            f"set data.text_field to one of its text fields: {', '.join(texts[:8])}"
            if texts
            else "it has no text field"
        )
        raise DataError(f"{where} has no field '{settings.text_field}'", hint)
    text = value[settings.text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: field '{settings.text_field}' is {_json_type(text)}, not text", "set data.text_field"
        )
    return without_surrogates(text, f"{where} (byte {offset})", settings)


def too_much(error: RecursionError | ValueError) -> str:
    """What of a JSON text Python does not read though it is one: it refuses numbers of thousands of digits, too."""
    what = "is nested too deeply" if isinstance(error, RecursionError) else "has too long a number"
    return f"{what} to be read"


def without_surrogates(text: str, where: str, settings: TextSettings) -> str:
    """`text`, with U+FFFD for halves of surrogate pairs where `settings` say so.

    Raises:
        BadText: it has some, and is not to be mended so.
    """
    if text.isascii() or not _LONE_SURROGATE.search(text):
        return text
    if settings.on_bad_encoding != "replace":
        raise BadText(
            f"{where}: '{settings.text_field}' has half a surrogate pair, or bytes that do not decode",
            "set data.encoding, mend the line, or set data.on_bad_encoding to skip or replace",
            "no Unicode text",
        )
    return _LONE_SURROGATE.sub("\ufffd", text)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _undecodable(where: str, encoding: str, error: UnicodeDecodeError, base: int) -> BadText:
    return BadText(
        f"{where} is not {encoding}: {error.reason} at byte {base + error.start}",
        "set data.encoding, or data.on_bad_encoding to skip or replace",
        f"not {encoding}",
    )


def _refuse_binary(name: str, block: bytes, at: int) -> None:
    """NUL anywhere, or a beginning full of control characters, is no text in any encoding that people use."""
    nul = block.find(0)
    head = block[:_HEAD_BYTES] if at <= len(_BOM) else b""
    control = len(head) - len(head.translate(None, _CONTROL))
    if nul < 0 and control * 10 <= len(head):
        return
    known = next(
        (text for start, text in _KNOWN_FORMATS.items() if at == 0 and block.startswith(start)), None
    )
    what = (
        f"NUL at byte {at + nul}"
        if nul >= 0
        else f"{control} control characters in its first {len(head)} bytes"
    )
    raise BadText(
        f"{name} is a binary file, not text ({what})",
        f"it looks like {known}"
        if known
        else "leave it out of data.source, or set data.on_bad_encoding: skip",
        "binary",
    )
