"""YAML text → plain values, with the place of every key and value.

Tutti reads numbers and words as YAML 1.2 does, because the older rules surprise: here `1e-3` is a number,
`no` and `on` are text, `2024-01-01` is text, `1:30` is text. Keys given twice are refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from tutti.config.problems import KeyPath, Origin, Problem, SourceMap, dotted

TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+)$")
FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
#: A file of settings is a few lines; these bounds keep a bomb of aliases or a wrong file out.
LARGEST_BYTES, MOST_VALUES, DEEPEST = 256 * 1024, 10_000, 30

#: What PyYAML says → what that means to somebody who does not know the grammar.
_PLAIN = (
    ("'\\t' that cannot start any token", "a tab stands in the indentation; YAML takes spaces only"),
    (
        "mapping values are not allowed",
        "a `:` stands where none can be; check the indentation, and quote text with `: ` in it",
    ),
    ("could not find expected ':'", "this line is neither `key: value` nor a list item; is a `:` missing?"),
    ("unexpected end of stream", "a quote is opened here and never closed"),
    ("expected ',' or ']'", "a `[` list is not closed, or a comma is missing"),
    ("expected ',' or '}'", "a `{` mapping is not closed, or a comma is missing"),
    ("expected <block end>", "the indentation does not line up with the lines above"),
    ("but found another document", "a second document begins here (`---`); a file holds one"),
    ("undefined alias", "this `*name` refers to an anchor (`&name`) that is not there"),
    ("duplicate anchor", "this anchor (`&name`) is defined twice"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with YAML 1.2's idea of what a plain word is."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in (("bool", _BOOL), ("null", _NULL), ("int", INT), ("float", FLOAT)):
    _Loader.add_implicit_resolver(TAG + _name, _pattern, None)


@dataclass
class Document:
    """What a text says: its value (None when it says nothing), where, and what is wrong with it.

    `broken`: what is wrong with single values that could not be read; they stand as None in `value`.
    `problems`: everything else.
    """

    value: Any
    sources: SourceMap
    problems: list[Problem] = field(default_factory=list)
    broken: dict[KeyPath, Problem] = field(default_factory=dict)


class _Unreadable(Exception):
    def __init__(self, origin: Origin, reason: str) -> None:
        super().__init__(reason)
        self.problem = Problem(origin, "", reason)


def read_yaml(text: str, file: str, path: KeyPath = ()) -> Document:
    """Parse `text`, which messages call `file`, as the value of `path` (`()`: the whole configuration).

    Never raises: what cannot be read is a problem.
    """
    document = Document(None, SourceMap(file))
    try:
        node = _compose(text, file)
        if node is not None:
            document.value = _Builder(document).build(node, path, frozenset())
    except _Unreadable as error:
        document.value = None
        document.problems = [error.problem]
    return document


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        said = f"{error.context or ''} {error.problem or ''}"
        unclosed = "end of stream" in said and error.context_mark is not None
        mark = error.context_mark if unclosed else error.problem_mark or error.context_mark
        origin = Origin(file, mark.line + 1, mark.column + 1) if mark else Origin(file)
        plain = next((plain for words, plain in _PLAIN if words in said), f"this is not YAML: {said.strip()}")
        raise _Unreadable(origin, plain) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        origin = Origin(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise _Unreadable(origin, "a control character stands here; text files have none") from error
    except RecursionError as error:
        raise _Unreadable(Origin(file), "lists or mappings are nested too deeply") from error
    except (ValueError, OverflowError, yaml.YAMLError) as error:  # e.g. "\UFFFFFFFF", which is no character
        raise _Unreadable(Origin(file), f"this is not YAML: {error}") from error


class _Builder:
    """Makes plain values of a node graph, and notes where each was written."""

    def __init__(self, document: Document) -> None:
        self.sources = document.sources
        self.problems = document.problems
        self.broken = document.broken
        self.count = 0

    def origin(self, node: yaml.Node) -> Origin:
        return Origin(self.sources.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node, path: KeyPath, inside: frozenset[int]) -> Any:
        """`inside`: the nodes that this one is part of; an alias to one of them would have no end."""
        self.count += 1
        if self.count > MOST_VALUES:
            raise _Unreadable(
                self.origin(node), f"there are more than {MOST_VALUES} values; is this the right file?"
            )
        if id(node) in inside:
            raise _Unreadable(self.origin(node), "this refers to itself, without end")
        if len(inside) > DEEPEST:
            raise _Unreadable(self.origin(node), "lists or mappings are nested too deeply")
        self.sources.keys.setdefault(path, self.origin(node))
        self.sources.values[path] = self.origin(node)
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.mapping(node, path, inside | {id(node)})
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.build(item, (*path, i), inside | {id(node)}) for i, item in enumerate(node.value)]
        try:
            if isinstance(node, yaml.ScalarNode):
                return self.scalar(node, path)
            raise _Unreadable(self.origin(node), f"the tag {node.tag} has no meaning here")
        except _Unreadable as error:  # the rest of the file can still be judged
            self.broken[path] = replace(error.problem, path=dotted(path))
            return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath, inside: frozenset[int]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            origin = self.origin(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Unreadable(origin, "a key must be a word, not a list or a mapping")
            key = self.text(key_node)
            if key in result:
                first = self.sources.keys[(*path, key)].line
                self.problems.append(
                    Problem(origin, dotted((*path, key)), f"given twice, first in line {first}")
                )
                continue
            self.sources.keys[(*path, key)] = origin
            result[key] = self.build(value_node, (*path, key), inside)
        return result

    def text(self, node: yaml.ScalarNode) -> str:
        if "\0" in node.value or any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise _Unreadable(
                self.origin(node), "this text holds a character that no file name or text may have"
            )
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(TAG), self.text(node)
        plain = text.replace("_", "")
        if kind == "null":
            return None
        if kind == "str":
            return text
        if kind == "bool" and _BOOL.match(text):
            return text.lower() == "true"
        if kind == "int" and INT.match(text):
            return self.whole_number(node, plain)
        if kind == "float" and (FLOAT.match(text) or INT.match(text)):
            return self.number(node, plain, path)
        raise _Unreadable(self.origin(node), f"the tag {node.tag} does not fit {text[:40]!r} here")

    def whole_number(self, node: yaml.ScalarNode, text: str) -> int:
        value = int(text, 0) if len(text) < 40 else 1 << 100
        if not -(2**63) <= value < 2**63:
            raise _Unreadable(self.origin(node), "this number is larger than any that can be used here")
        return value

    def number(self, node: yaml.ScalarNode, text: str, path: KeyPath) -> float:
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        # Architectures do have infinite settings; Tutti's own have not.
        if not math.isfinite(value) and path[:2] != ("model", "config"):
            raise _Unreadable(self.origin(node), "this number is not finite")
        return value
