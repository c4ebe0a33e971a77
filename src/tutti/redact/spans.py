"""What a redactor is: text → spans, and where a text can be cut without changing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, order=True)
class Span:
    """`start` to `end` (not included), in characters; `kind`: as Presidio calls it, such as `EMAIL_ADDRESS`."""

    start: int
    end: int
    kind: str

    def moved(self, by: int) -> Span:
        """The same, so many characters later."""
        return Span(self.start + by, self.end + by, self.kind)


class Redactor(Protocol):
    """Finds personal data. `slow`: it takes longer than an event loop should wait."""

    slow: bool

    def spans(self, text: str) -> list[Span]:
        """What is to be hidden in `text`, in order; spans may overlap."""

    def cuts(self, text: str) -> list[int]:
        """Where `text` can be cut, in order, whatever may follow it.

        For each `c` of them and every `more`: spans(text + more) are those of text[:c], and those of text[c:] + more.
        This is what makes streams safe: what stands before a cut can leave.
        """


class Together:
    """Whatever any of `redactors` finds."""

    def __init__(self, redactors: Sequence[Redactor]) -> None:
        self._redactors = redactors
        self.slow = any(one.slow for one in redactors)

    def spans(self, text: str) -> list[Span]:
        return sorted(span for one in self._redactors for span in one.spans(text))

    def cuts(self, text: str) -> list[int]:
        return sorted(set.intersection(*(set(one.cuts(text)) for one in self._redactors)))


def merged(spans: Iterable[Span]) -> list[Span]:
    """In order; those that overlap become one, of the kind of the longest."""
    found: list[list[Span]] = []
    end = -1
    for span in sorted(spans):
        if span.start < end:
            found[-1].append(span)
        else:
            found.append([span])
        end = max(end, span.end)
    return [
        Span(
            group[0].start,
            max(one.end for one in group),
            max(group, key=lambda one: one.end - one.start).kind,
        )
        for group in found
    ]


def mask(text: str, redactor: Redactor, found: Counter[str]) -> str:
    """`text` with `[KIND]` in place of each span; `found` counts them."""
    parts, reached = [], 0
    for span in merged(redactor.spans(text)):
        parts += [text[reached : span.start], f"[{span.kind}]"]
        reached = span.end
        found[span.kind] += 1
    return "".join([*parts, text[reached:]])
