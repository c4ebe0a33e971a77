"""Dotted overrides: `train.steps=200`, `sync=diloco`, `data.source=[a.txt, b.txt]`.

The value is YAML and takes the place of what the file says for that key. Where the file uses a section's
short form, the override sees through it: `sync.every=20` after `sync: diloco` keeps the policy. What follows
`search.` is one key: `search.train.learning_rate=1e-5..1e-3`. `train.steps` takes the place of `train.epochs` in the
file as well, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tutti.config.describe import field_at, section_of, short_form
from tutti.config.fields import Section
from tutti.config.problems import KeyPath, Origin, Problem, dotted
from tutti.config.read import Document, read_yaml
from tutti.config.schema import Config

#: Two ways to say one thing, of which the file's gives way to an override of the other.
_EITHER: dict[KeyPath, str] = {("train", "steps"): "epochs", ("train", "epochs"): "steps"}


def expand_short_forms(document: Document, root: type[Section] = Config) -> None:
    """Replace `sync: diloco` by `sync: {policy: diloco}` wherever the schema has such a form."""
    _expand(document, document.value, (), root)


def _expand(document: Document, mapping: dict[str, Any], at: KeyPath, root: type[Section]) -> None:
    for key, value in list(mapping.items()):
        field = field_at((*at, key), root)
        if field is None or section_of(field) is None:
            continue
        expanded = short_form(field)(value)
        if expanded is not value and isinstance(expanded, dict):
            mapping[key] = expanded
            place = document.sources.value((*at, key))
            for inner in expanded:
                document.sources.put((*at, key, inner), place, place)
        elif isinstance(value, dict):
            _expand(document, value, (*at, key), root)


def apply_overrides(document: Document, overrides: Sequence[str], root: type[Section] = Config) -> None:
    """Apply each of `overrides` in turn to a document whose value is a mapping; problems are added to it."""
    for number, text in enumerate(overrides, 1):
        origin = Origin(override=text, number=number)
        reason = _apply(document, text, origin)
        if reason:
            document.problems.append(Problem(origin, "", reason))
        expand_short_forms(document, root)


def _apply(document: Document, text: str, origin: Origin) -> str:
    """Returns what is wrong with the override itself, or ""."""
    name, equals, written = text.partition("=")
    path: KeyPath = tuple(name.strip().split("."))
    if path[0] == "search" and len(path) > 1:  # there a dotted name is one key
        path = ("search", ".".join(map(str, path[1:])))
    if not equals:
        return "an override is written key=value, for example train.steps=200"
    if not all(path):
        return (
            f"{name.strip()!r} is no key; write the section, a dot and the key, for example train.steps=200"
        )
    value = read_yaml(written, "", path)
    if value.problems:
        return f"the value cannot be read: {value.problems[0].reason}"
    parent: dict[str, Any] = document.value
    for depth in range(1, len(path)):
        inner = parent.setdefault(str(path[depth - 1]), {})
        if inner is None:  # `train:` with nothing below it
            inner = parent[str(path[depth - 1])] = {}
        if not isinstance(inner, dict):
            return f"{dotted(path[:depth])} holds a single value, not a section with keys"
        if not document.sources.has(path[:depth]):
            document.sources.put(path[:depth], origin, origin)
        parent = inner
    parent[str(path[-1])] = value.value
    document.sources.put(path, origin, origin)
    gone = [path]
    other = _EITHER.get(path)
    if other is not None and other in parent and value.value not in (None, "auto"):
        instead = (*path[:-1], other)
        if not document.sources.key(instead).override:
            del parent[other]
            gone.append(instead)
    for known in [known for known in document.broken if any(known[: len(path)] == path for path in gone)]:
        del document.broken[known]  # what the file says there no longer matters
    for known, problem in value.broken.items():
        document.broken[known] = replace(problem, origin=origin)
    return ""
