"""Where each setting was written, and what is wrong with it.

A file is judged as a whole: every problem is collected first, then all of them are raised as one error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tutti.core.errors import ConfigError

#: The way to a setting: keys, and numbers inside lists.
KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """`("data", "source", 0)` as a user writes it: `data.source[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class Origin:
    """A place in a file (line and column count from 1), or an override."""

    file: str = ""
    line: int = 1
    column: int = 1
    override: str = ""
    number: int = 0  # of the override, so that problems come in the order of the command line

    def __str__(self) -> str:
        return f"override {self.override}" if self.override else f"{self.file}:{self.line}:{self.column}"

    @property
    def order(self) -> tuple[int, int, int]:
        """Files come before overrides."""
        return (self.number, self.line, self.column)


@dataclass(frozen=True)
class Problem:
    """One thing to mend."""

    origin: Origin
    path: str
    reason: str
    suggestions: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.origin}: {self.path}: " if self.path else f"{self.origin}: "
        guess = f"; did you mean {alternatives(map(repr, self.suggestions))}?" if self.suggestions else ""
        return f"{where}{self.reason}{guess}"

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        place: dict[str, object] = (
            {"override": self.origin.override}
            if self.origin.override
            else {"file": self.origin.file, "line": self.origin.line, "column": self.origin.column}
        )
        return place | {"path": self.path, "reason": self.reason, "suggestions": list(self.suggestions)}


class InvalidConfig(ConfigError):
    """Every problem of a file and its overrides, in `problems`, in the order in which they were written."""

    def __init__(self, problems: Iterable[Problem], hint: str = "") -> None:
        self.problems = sorted(problems, key=lambda problem: problem.origin.order)
        lines = [str(problem) for problem in self.problems]
        text = (
            lines[0]
            if len(lines) == 1
            else "\n".join([f"{len(lines)} problems:", *(f"  {line}" for line in lines)])
        )
        super().__init__(text, hint)

    def __reduce__(self) -> tuple[type[InvalidConfig], tuple[list[Problem], str]]:  # type: ignore[override]
        return (type(self), (self.problems, self.hint))


@dataclass
class SourceMap:
    """For every setting the place of its key and of its value."""

    file: str = ""
    keys: dict[KeyPath, Origin] = field(default_factory=dict)
    values: dict[KeyPath, Origin] = field(default_factory=dict)

    def put(self, path: KeyPath, key: Origin, value: Origin) -> None:
        """Note where `path` stands; what was known of the settings below it is forgotten."""
        for places in (self.keys, self.values):
            for below in [known for known in places if known[: len(path)] == path]:
                del places[below]
        self.keys[path], self.values[path] = key, value

    def has(self, path: KeyPath) -> bool:
        """Whether the user wrote this setting."""
        return path in self.keys

    def key(self, path: KeyPath) -> Origin:
        """Where the key of `path` stands, or the nearest that was written."""
        return self._nearest(self.keys, path)

    def value(self, path: KeyPath) -> Origin:
        """Where the value of `path` stands, or the nearest that was written."""
        return self._nearest(self.values, path)

    def _nearest(self, places: dict[KeyPath, Origin], path: KeyPath) -> Origin:
        if path in places:
            return places[path]
        below = [place for known, place in places.items() if path and known[: len(path)] == path]
        if below:
            return below[0]
        return self._nearest(places, path[:-1]) if path else Origin(self.file)


def alternatives(items: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`; with commas only where an item has an `or` of its own."""
    words = list(items)
    if len(words) < 2:
        return "".join(words)
    before_last = ", or " if any(" or " in word for word in words) else " or "
    return before_last.join([", ".join(words[:-1]), words[-1]])
