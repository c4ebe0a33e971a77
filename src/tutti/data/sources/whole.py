"""Files that are one document: text, source code, HTML, PDF. A very long one is given in parts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tutti.core.errors import DataError
from tutti.data.compressed import READ_ERRORS
from tutti.data.listing import UnreadableFile, open_binary, unreadable
from tutti.data.pieces import pieces
from tutti.data.reading import TextSettings, read_python, read_text
from tutti.data.settings import LONGEST_DOCUMENT_CHARACTERS
from tutti.data.sources.document import Document, Stretch

#: Where a PDF breaks a word at the end of a line.
_BROKEN_WORD = re.compile("[\x02\xad\ufffe]\r?\n")
_PARAGRAPHS = "\n\n"


def read_whole(stretch: Stretch, settings: TextSettings) -> Iterator[Document]:
    """The text of a file; raises as `reading.read_text`."""
    name, kind = stretch.file.name, stretch.file.kind
    if kind == "html":
        texts: Iterable[str] = [_text_of_html(name, _content(name, settings))]
    elif kind == "pdf":
        texts = _text_of_pdf(name, _content(name, settings))
    elif kind == "python":
        texts = read_python(name)
    else:
        texts = (text for text, _ in read_text(name, settings))
    number = 0
    for text in pieces(texts, LONGEST_DOCUMENT_CHARACTERS):
        if number or len(text) >= LONGEST_DOCUMENT_CHARACTERS // 2:
            number += 1
        yield Document(text, number)


def _content(name: str, settings: TextSettings) -> bytes:
    with open_binary(name, settings.remote) as file:
        try:
            return file.read()
        except READ_ERRORS as error:
            raise unreadable(name, error) from error


def _text_of_html(name: str, content: bytes) -> str:
    """The main text of a page; where none can be told from the rest, all of it. The page says its encoding."""
    try:
        import lxml.etree
        import lxml.html
        import trafilatura
    except ImportError as error:
        raise DataError(
            f"{name} is HTML, and trafilatura is not installed", "pip install 'tutti[data]'"
        ) from error
    library: Any = trafilatura
    pages: Any = lxml.html
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it takes what is no page for an error
    text = library.utils.decode_file(content)
    found = library.extract(text, include_comments=False)
    if found or not text.strip():
        return str(found or "")
    try:
        tree = pages.document_fromstring(text.encode(), parser=pages.HTMLParser(encoding="utf-8"))
    except lxml.etree.ParserError:  # nothing in it but comments
        return ""
    lxml.etree.strip_elements(tree, "script", "style", with_tail=False)
    return str(tree.text_content()).strip()


def _text_of_pdf(name: str, content: bytes) -> Iterator[str]:
    """The text of each page; nothing of scanned ones, which are pictures."""
    try:
        import pypdfium2
    except ImportError as error:
        raise DataError(
            f"{name} is a PDF, and pypdfium2 is not installed", "pip install 'tutti[data]'"
        ) from error
    library: Any = pypdfium2
    try:
        with library.PdfDocument(content) as pages:
            for number, page in enumerate(pages):
                text = _BROKEN_WORD.sub("", page.get_textpage().get_text_bounded()).replace("\r\n", "\n")
                yield _PARAGRAPHS * (number > 0) + text.strip()
    except library.PdfiumError as error:
        raise UnreadableFile(f"{name} is a damaged PDF: {error}", "fetch or write it again") from error
