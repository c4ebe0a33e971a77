"""All steps of cleaning, one after the other, with what each of them did."""

from __future__ import annotations

from collections import Counter

from tutti.config.clean import CleanConfig
from tutti.data.cleaning.filters import Length, Letters
from tutti.data.cleaning.headers import Headers
from tutti.data.cleaning.language import Language
from tutti.data.cleaning.redaction import Redaction
from tutti.data.cleaning.repetition import Repetition
from tutti.data.cleaning.step import Dropped, Step
from tutti.data.cleaning.unicode import Unicode
from tutti.data.listing import Kind
from tutti.data.manifest import Example, StepReport
from tutti.redact import Patterns, mask

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 100
_BEFORE_A_CHANGE = 30
_LONGEST_DATA = 200
#: Characters of a text of which an example is made.
_LOOKED_AT = 4 * _EXAMPLE_CHARACTERS + _LONGEST_DATA


def steps_of(config: CleanConfig) -> list[Step]:
    """Those that `config`, which is settled, asks for.

    Raises:
        DataError: a library is missing; names what to install.
    """
    steps: list[Step | None] = [
        Unicode() if config.unicode else None,
        Headers() if config.headers else None,
        Length(int(config.shortest), config.longest) if config.shortest or config.longest else None,
        Letters(float(config.letters)) if config.letters else None,
        Repetition() if config.repetition else None,
        Language(config.languages) if config.languages else None,
        Redaction(None if config.redact is True else config.redact) if config.redact else None,
    ]
    return [step for step in steps if step is not None]


def changes_of(config: CleanConfig) -> list[Step]:
    """Those of them that change texts; they leave none out."""
    return steps_of(
        CleanConfig(unicode=config.unicode, headers=config.headers, redact=config.redact).settled()
    )


class Cleaner:
    """Takes texts through `steps`; `tallies`: what each did so far."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self.tallies = [Tally(step.name) for step in steps]

    def clean(self, text: str, kind: Kind, where: str) -> str | None:
        """What is left of `text`; None: it is left out."""
        for step, tally in zip(self._steps, self.tallies, strict=True):
            if not text:  # nothing can be left
                break
            tally.seen += 1
            result = step.apply(text, kind, tally.reasons)
            if isinstance(result, Dropped):
                tally.drop(text, where, result.why)
                return None
            if result != text:
                tally.change(text, result, where)
                text = result
        return text

    def reports(self) -> list[StepReport]:
        """What was done so far."""
        return [tally.report() for tally in self.tallies]


class Tally:
    """What one step did. `bytes`: of UTF-8 that it took out."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.seen = self.changed = self.dropped = self.bytes = 0
        self.reasons: Counter[str] = Counter()
        self.examples: list[Example] = []

    def drop(self, text: str, where: str, why: str) -> None:
        """A text was left out."""
        self.dropped += 1
        self.bytes += len(text.encode())
        self.reasons[why] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(Example(where=where, text=f"{why}: {shortened(text)}"))

    def change(self, before: str, after: str, where: str) -> None:
        """A text was changed."""
        self.changed += 1
        self.bytes += len(before.encode()) - len(after.encode())
        if len(self.examples) < _EXAMPLES:
            differs = (
                place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new
            )
            at = _outside(before, next(differs, min(len(before), len(after))) - _BEFORE_A_CHANGE)
            was, is_now = shortened(before[at:]), shortened(after[at:])
            shown = is_now if was == is_now else f"{was} → {is_now}"  # equal where data was hidden
            self.examples.append(Example(where=where, text=shown))

    def report(self) -> StepReport:
        """As it is kept."""
        return StepReport(
            step=self.step,
            seen=self.seen,
            changed=self.changed,
            dropped=self.dropped,
            bytes=self.bytes,
            reasons=dict(self.reasons),
            examples=tuple(self.examples),
        )


def _outside(text: str, at: int) -> int:
    """`at`, or where the personal data begins in whose middle that is: the rest of a number would not be masked."""
    start = max(0, at - _LONGEST_DATA)
    spans = Patterns().spans(text[start : at + _LONGEST_DATA])
    return next((start + one.start for one in spans if one.start < at - start < one.end), max(0, at))


def shortened(text: str) -> str:
    """The beginning of `text` in one line, fit to be shown: without personal data that patterns find."""
    patterns, head = Patterns(), text[:_LOOKED_AT]
    if len(head) < len(text) and (cuts := patterns.cuts(head)):  # half an address is no address to patterns
        head = head[: cuts[-1]]
    line = " ".join(mask(head, patterns, Counter()).split())
    return line if len(line) <= _EXAMPLE_CHARACTERS else line[: _EXAMPLE_CHARACTERS - 1] + "…"


def summed(reports: list[list[StepReport]]) -> list[StepReport]:
    """Those of the same steps together, in the order of the first."""
    by_step: dict[str, list[StepReport]] = {}
    for some in reports:
        for one in some:
            by_step.setdefault(one.step, []).append(one)
    return [
        StepReport(
            step=step,
            **{
                key: sum(getattr(one, key) for one in some) for key in ("seen", "changed", "dropped", "bytes")
            },
            reasons=dict(sum((Counter(one.reasons) for one in some), Counter()).most_common()),
            examples=tuple(example for one in some for example in one.examples)[:_EXAMPLES],
        )
        for step, some in by_step.items()
    ]
