"""Entities of a text: as spans, and as BIO tags of its words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tutti.core import DataError
from tutti.tasks.task import Example, Record

OUTSIDE = "O"


def tags_of_spans(record: Record, spans: Any, text: str, words: Sequence[tuple[int, int]]) -> list[str]:
    """Of each of the `words` of `text` the tag that the `spans` of `record` mean.

    Raises:
        DataError: one is no span, lies outside the text, holds no word, or overlaps another.
    """
    tags = [OUTSIDE] * len(words)
    if not isinstance(spans, list):
        raise DataError(
            f"{record.origin}: spans is no list", 'give spans: [{"start": 0, "end": 4, "label": "…"}]'
        )
    for span in spans:
        start, end, label = _span(record, span, text)
        inside = [at for at, (first, last) in enumerate(words) if first < end and last > start]
        if not inside:
            raise DataError(
                f"{record.origin}: the span {text[start:end]!r} ({start} to {end}) holds no word",
                "mend or delete it",
            )
        if any(tags[at] != OUTSIDE for at in inside):
            raise DataError(
                f"{record.origin}: the span {text[start:end]!r} ({start} to {end}) overlaps another",
                "entities cannot overlap; keep one of them",
            )
        for at in inside:
            tags[at] = ("B-" if at == inside[0] else "I-") + label
    return tags


def entities(example: Example, tags: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The entities that `tags` mean, as the shared task of CoNLL 2000 counts them: also where `I-` begins one."""
    open_: dict[str, Any] | None = None
    for (start, end), tag in zip(example["words"], tags, strict=True):
        kind = tag[2:]
        if open_ is not None and (tag == OUTSIDE or tag[0] == "B" or kind != open_["label"]):
            yield open_
            open_ = None
        if tag == OUTSIDE:
            continue
        if open_ is None:
            open_ = {"label": kind, "start": start, "end": end, "text": ""}
        open_["end"], open_["text"] = end, example["text"][open_["start"] : end]
    if open_ is not None:
        yield open_


def _span(record: Record, span: Any, text: str) -> tuple[int, int, str]:
    try:
        start, end, label = span["start"], span["end"], span["label"]
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(label, str) and label):
            raise TypeError
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{record.origin}: {str(span)[:80]} is no span",
            'spans are like {"start": 0, "end": 4, "label": "…"}',
        ) from error
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{record.origin}: the span from {start} to {end} lies outside its text of {len(text)} characters",
            "start counts characters from 0, end is behind the last",
        )
    return start, end, label
