"""The schema in plain words: what a key takes, what its default is, which keys there are.

Messages, the reference page and the commented file of `tutti init` are all made from this.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from tutti.config.fields import Section
from tutti.config.problems import KeyPath, alternatives
from tutti.config.schema import Config

#: What the schema's patterns mean to a reader.
PATTERNS = {
    r"^\d+(\.\d+)?[KMB]$": "a size such as 800K, 15M or 1B",
    r"^\d+(\.\d+)?(MB|GB)$": "an amount of memory such as 500MB or 2GB",
    r"^\$[A-Za-z_][A-Za-z0-9_]*$": "a variable of the environment such as $SMTP_PASSWORD",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$": "a name of at most 100 letters, digits, dots, dashes and "
    "underscores, that begins with a letter or digit",
}
SECTION = "a section (`key: value` lines, indented)"


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that `field` holds, or None when it holds a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def section_at(path: KeyPath, root: type[Section] = Config) -> type[Section] | None:
    """The section at `path` (`()` is the whole file) of the schema `root`, or None when there is none."""
    section: type[Section] | None = root
    for key in path:
        field = section.model_fields.get(str(key)) if section else None
        section = section_of(field) if field else None
    return section


def field_at(path: KeyPath, root: type[Section] = Config) -> FieldInfo | None:
    """The field at `path`, or None when the schema has no such key."""
    section = section_at(path[:-1], root) if path else None
    return section.model_fields.get(str(path[-1])) if section else None


def section_keys(path: KeyPath, root: type[Section] = Config) -> list[str]:
    """The keys of the section at `path`."""
    section = section_at(path, root)
    return list(section.model_fields) if section else []


@cache
def all_keys(root: type[Section] = Config) -> tuple[tuple[str, ...], ...]:
    """Every key of the schema, in order; sections before what is in them."""

    def walk(section: type[Section], path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for key, field in section.model_fields.items():
            found.append((*path, key))
            inner = section_of(field)
            found += walk(inner, (*path, key)) if inner else []
        return found

    return tuple(walk(root, ()))


def short_form(field: FieldInfo) -> Callable[[Any], Any]:
    """What turns the short form of a section (`sync: diloco`) into a mapping; leaves others as they are."""
    validators = [item.func for item in field.metadata if isinstance(item, BeforeValidator)]

    def expand(value: Any) -> Any:
        for validator in validators:
            value = validator(value)  # type: ignore[call-arg]
        return value

    return expand


def short_kinds(field: FieldInfo) -> list[Literal["string", "integer", "array"]]:
    """Which plain values stand for the whole section, found by trying."""
    expand = short_form(field)
    kinds: list[Literal["string", "integer", "array"]] = []
    if expand("x") != "x":
        kinds.append("string")
    if expand(1) != 1:
        kinds.append("integer")
    if expand(["x"]) != ["x"]:
        kinds.append("array")
    return kinds


def words(field: FieldInfo) -> str:
    """What `field` takes: `a whole number above 0, or auto`."""
    if section_of(field):
        names = {"string": "text", "integer": "a whole number", "array": "a list of texts"}
        return alternatives([SECTION, *(names[kind] for kind in short_kinds(field))])
    return annotation_words(field.annotation, field.metadata)


def annotation_words(annotation: Any, metadata: list[Any] | None = None) -> str:
    """A type in plain words; `metadata` holds its bounds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        bounds = [item for one in extra for item in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return annotation_words(inner, [*bounds, *(metadata or [])])
    if origin in (Union, types.UnionType):
        return alternatives(
            option for member in get_args(annotation) for option in _options(member, metadata)
        )
    if origin is Literal:
        return alternatives(_options(annotation, metadata))
    if origin is list:
        item = item_type(annotation)
        if options := choices(item):
            return f"a list of {alternatives(f'`{option}`' for option in options)}"
        return "a list of texts" if item is str else "a list"
    if origin is tuple:
        return f"a list of {len(get_args(annotation))}, each {annotation_words(item_type(annotation))}"
    if annotation is str:
        pattern = pattern_of(metadata or [])
        return PATTERNS.get(pattern, f"text that matches {pattern}") if pattern else "text"
    if annotation is int or annotation is float:
        return _number_words("a whole number" if annotation is int else "a number", metadata or [])
    if annotation is bool:
        return "`true` or `false`"
    if annotation is types.NoneType:
        return "`null`"
    return "a mapping of keys to values"


def _options(annotation: Any, metadata: list[Any] | None) -> list[str]:
    """The words of a type that may be one of several itself."""
    if get_origin(annotation) is Literal:
        return [f"`{option}`" for option in get_args(annotation)]
    return [annotation_words(annotation, metadata)]


def pattern_of(metadata: list[Any]) -> str:
    """The regular expression that a text must match, or ""."""
    return next((str(item.pattern) for item in metadata if getattr(item, "pattern", None)), "")


def _number_words(noun: str, metadata: list[Any]) -> str:
    low = next((item for item in metadata if isinstance(item, Gt | Ge)), None)
    high = next((item for item in metadata if isinstance(item, Lt | Le)), None)
    if isinstance(low, Gt):
        return f"{noun} above {low.gt:g}"
    if isinstance(low, Ge) and isinstance(high, Le):
        return f"{noun} from {low.ge:g} to {high.le:g}"
    below = f", below {high.lt:g}" if isinstance(high, Lt) else ""
    return f"{noun} of {low.ge:g} or more{below}" if isinstance(low, Ge) else noun


def item_type(annotation: Any) -> Any:
    """The type of the items of a list (or of the list in a union), or None."""
    if get_origin(annotation) in (list, tuple):
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return next((item for member in get_args(annotation) if (item := item_type(member))), None)
    return None


def choices(annotation: Any) -> list[str]:
    """The words among which a value is chosen, of a type or of the members of a union."""
    if get_origin(annotation) is Literal:
        return [option for option in get_args(annotation) if isinstance(option, str)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in choices(member)]
    return []


def takes(annotation: Any, kind: type) -> bool:
    """Whether `kind` itself is among what a type takes."""
    if annotation is kind:
        return True
    if get_origin(annotation) is Annotated:
        return takes(get_args(annotation)[0], kind)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(takes(member, kind) for member in get_args(annotation))
    return False


def default_text(field: FieldInfo) -> str:
    """The default as it would stand in a file (one line of YAML)."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def show(value: Any) -> str:
    """A value of the user's in a few words: `text 'abc'`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {_shorten(repr(value))}"
    if isinstance(value, str):
        return f"text {_shorten(repr(value))}"
    return "a list" if isinstance(value, list) else "a mapping"


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"
