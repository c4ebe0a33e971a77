"""Documents in a folder: `.txt` and `.md` files, each one document, and `.jsonl` files with one in each line.

A line is an object with `text`, and perhaps `id`, by which it is cited (else by its file and line).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tutti.core.errors import DataError

_WHOLE, _LINES = (".txt", ".md"), ".jsonl"


class Document(NamedTuple):
    """`name`: by which it is cited."""

    name: str
    text: str


def read_folder(folder: Path) -> list[Document]:
    """Every document below `folder`, in the order of their names; empty ones are left out.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", "give the folder in which the documents are")
    found: list[Document] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix.lower() in (*_WHOLE, _LINES):
            text = _read(path)
            found += _lines(path, name, text) if path.suffix.lower() == _LINES else [Document(name, text)]
    found = [document for document in found if document.text.strip()]
    if not found:
        raise DataError(
            f"{folder} holds no documents", f"documents are files that end in {', '.join((*_WHOLE, _LINES))}"
        )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "mend it, or take it away") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8: {error}", "convert it, or take it away") from error


def _lines(path: Path, name: str, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            content = record["text"]
            if not isinstance(content, str):
                raise TypeError(f"text is {type(content).__name__}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number} is no document: {type(error).__name__}: {error}",
                'a line is like {"id": "returns.3", "text": "…"}',
            ) from error
        yield Document(str(record.get("id", f"{name}:{number}")), content)
