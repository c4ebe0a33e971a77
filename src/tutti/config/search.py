"""What `tutti tune` may change: the section `search`, and what is wrong with it, said at its place.

A key of the section is the dotted name of another key; its value says which values are tried there: a range
(`1e-5..1e-3`, or `{low: 1e-5, high: 1e-3, log: true}`), or a list to choose from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tutti.config.describe import choices, field_at, section_keys, section_of, show, takes, words
from tutti.config.problems import KeyPath, Problem, dotted
from tutti.config.read import FLOAT, INT, Document
from tutti.config.schema import Config
from tutti.config.searchable import guess_key, why_fixed
from tutti.config.suggest import nearest
from tutti.config.task import idle_settings
from tutti.core.errors import ConfigError

#: What a setting may be.
Plain = bool | int | float | str | None

#: A range of so many times its lower end is searched on a logarithmic scale, unless it says what.
_WIDE = 10
#: Combinations that are tried out to find values that go with none.
_MOST_COMBINATIONS = 1024


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them; `whole`: no fractions."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Plain, ...]:
        """The values that say whether the others can be."""
        return (self.low, self.high)

    def has(self, value: Any) -> bool:
        """Whether `value` is among them."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or value == int(value))

    def as_setting(self) -> dict[str, Plain]:
        """As it stands in a file."""
        return {"low": self.low, "high": self.high, "log": self.log}

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of `values`."""

    key: str
    values: tuple[Plain, ...]

    @property
    def ends(self) -> tuple[Plain, ...]:
        """The values that say whether the others can be."""
        return self.values

    def has(self, value: Any) -> bool:
        """Whether `value` is among them."""
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)

    def as_setting(self) -> list[Plain]:
        """As it stands in a file."""
        return list(self.values)

    def __str__(self) -> str:
        return ", ".join(show_setting(value) for value in self.values)


Dimension = Range | Choice


def show_setting(value: Plain) -> str:
    """A value as it may be typed, fractions to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def search_space(config: Config) -> list[Dimension]:
    """What the section `search` of `config` says; nothing where it says nothing.

    Raises:
        ConfigError: a key or a value cannot be; the first that cannot.
    """
    try:
        return _read_all(config)
    except _Wrong as wrong:
        guess = f"did you mean {wrong.suggestions[0]}?" if wrong.suggestions else "see `tutti schema`"
        raise ConfigError(f"{dotted(('search', *wrong.path))}: {wrong.reason}", guess) from None


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with other values for some dotted keys.

    Raises:
        ConfigError: together they cannot be; says why.
    """
    raw = config.model_dump()
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        place[last] = value
    if "tune.method" in settings:  # tried together with what belongs to other methods
        raw["tune"] |= idle_settings(raw["tune"]["method"])
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        said = error.errors()[0]
        where = dotted(tuple(part for part in said["loc"] if isinstance(part, str)))
        reason = said["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {reason}" if where else reason, "see `tutti schema`") from None


def value_at(config: Config, key: str) -> Any:
    """What stands at the dotted `key`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check_search(document: Document, config: Config) -> list[Problem]:
    """What is wrong with the section `search` of `config`, as `document` says it."""
    problems = []
    for key, said in config.search.items():
        try:
            _read(key, said, config)
        except _Wrong as wrong:
            problems.append(_problem(document, wrong))
    if not problems:
        try:
            _read_all(config)
        except _Wrong as wrong:
            problems.append(_problem(document, wrong))
    return problems


def _problem(document: Document, wrong: _Wrong) -> Problem:
    path = ("search", *wrong.path)
    place = document.sources.key(path) if len(path) == 2 else document.sources.value(path)
    return Problem(place, dotted(path), wrong.reason, wrong.suggestions)


class _Wrong(Exception):
    """`path`: inside the section."""

    def __init__(self, path: KeyPath, reason: str, suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.path, self.reason, self.suggestions = path, reason, suggestions


def _read_all(config: Config) -> list[Dimension]:
    space = [_read(key, said, config) for key, said in config.search.items()]
    for dimension, value, reason in _impossible(config, space):
        raise _Wrong((dimension.key,), f"cannot be {show_setting(value)} here: {reason}")
    return space


def _read(key: str, said: Any, config: Config) -> Dimension:
    _check_key(key, config)
    if isinstance(said, dict):
        dimension: Dimension = _read_range(key, said)
    elif isinstance(said, list):
        dimension = _read_choice(key, said)
    elif isinstance(said, str) and ".." in said:
        low, _, high = said.partition("..")
        dimension = _read_range(key, {"low": _number(key, low), "high": _number(key, high)})
    else:
        raise _Wrong((key,), f"should be a range such as 1e-5..1e-3, or a list of values; got {show(said)}")
    return dimension


def _check_key(key: str, config: Config) -> None:
    path = tuple(key.split("."))
    field = field_at(path)
    if field is None:
        raise _Wrong((key,), "unknown key", guess_key(path))
    if (reason := why_fixed(key, config)) is not None:
        raise _Wrong((key,), f"is not searched: {reason}")
    if section_of(field) is not None:
        inside = ", ".join(dotted((*path, inner)) for inner in section_keys(path))
        raise _Wrong((key,), f"is a section; name a key in it: {inside}")


def _number(key: str, text: str) -> float:
    text = text.strip()
    if INT.match(text):
        return int(text.replace("_", ""), 0)
    if FLOAT.match(text) and math.isfinite(value := _plain_float(text)):
        return value
    raise _Wrong((key,), f"should be a range such as 1e-5..1e-3; {text[:40]!r} is no number")


def _plain_float(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:  # `.inf`, which is a number only in YAML
        return math.inf


def _read_range(key: str, said: dict[str, Any]) -> Range:
    for inner in said:
        if inner not in ("low", "high", "log"):
            guesses = tuple(nearest(inner, ("low", "high", "log")))
            raise _Wrong((key, inner), "unknown key; a range has low, high and log", guesses)
    for inner in ("low", "high"):
        value = said.get(inner)
        if not isinstance(value, int | float) or isinstance(value, bool):
            where = (key, inner) if inner in said else (key,)
            raise _Wrong(where, f"a range has numbers as low and high; {inner} is {show(value)}")
    low, high = said["low"], said["high"]
    field = field_at(tuple(key.split(".")))
    assert field is not None, "unknown keys are refused before"
    whole = not takes(field.annotation, float)
    if whole and not takes(field.annotation, int):
        raise _Wrong((key,), f"takes no range of numbers; list what to try: {words(field)}")
    if whole and not (isinstance(low, int) and isinstance(high, int)):
        raise _Wrong((key,), f"takes whole numbers; got {low:g} to {high:g}")
    for inner, value in (("low", low), ("high", high)):
        _check_value((key, inner) if inner in said else (key,), key, value)
    if low >= high:
        raise _Wrong((key,), f"a range goes from the smaller to the larger number; got {low:g} to {high:g}")
    log = said.get("log", low > 0 and high >= _WIDE * low)
    if not isinstance(log, bool):
        raise _Wrong((key, "log"), f"should be `true` or `false`; got {show(log)}")
    if log and low <= 0:
        raise _Wrong((key,), f"a logarithmic range begins above 0; got {low:g}")
    return Range(key, low, high, log, whole)


def _read_choice(key: str, said: list[Any]) -> Choice:
    for place, value in enumerate(said):
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise _Wrong((key, place), f"single values can be chosen from; got {show(value)}")
        _check_value((key, place), key, value)
        if any(value == other and type(value) is type(other) for other in said[:place]):
            raise _Wrong((key, place), f"{show(value)} stands there twice")
    if len(said) < 2:
        hint = f"; to fix it, write {key}={show_setting(said[0])} as an override" if said else ""
        raise _Wrong((key,), f"two values or more can be chosen from; got {len(said)}{hint}")
    return Choice(key, tuple(said))


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    field = field_at(tuple(key.split(".")))
    assert field is not None, "unknown keys are refused before"
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(strict=True))


def _check_value(path: KeyPath, key: str, value: Any) -> None:
    """Whether `value` alone can stand at `key`."""
    field = field_at(tuple(key.split(".")))
    assert field is not None, "unknown keys are refused before"
    try:
        _adapter(key).validate_python(value)
    except ValidationError:
        guesses = tuple(nearest(value, choices(field.annotation))) if isinstance(value, str) else ()
        raise _Wrong(path, f"{key} should be {words(field)}; got {show(value)}", guesses) from None


def _impossible(config: Config, space: list[Dimension]) -> Iterator[tuple[Dimension, Plain, str]]:
    """Values that no combination of the others goes with, and a reason."""
    ends = [[(dimension, value) for value in dimension.ends] for dimension in space]
    if math.prod(map(len, ends)) > _MOST_COMBINATIONS:
        return  # a trial with one of them will say so
    reasons: dict[tuple[str, int], str] = {}
    possible: set[tuple[str, int]] = set()
    for combination in itertools.product(*ends):
        keys = {(one.key, one.ends.index(value)) for one, value in combination}
        try:
            with_settings(config, {one.key: value for one, value in combination})
        except ConfigError as error:
            for key in keys:
                reasons.setdefault(key, error.problem)
        else:
            possible |= keys
    for dimension in space:
        for place, value in enumerate(dimension.ends):
            if (dimension.key, place) not in possible:
                yield dimension, value, reasons[dimension.key, place]
