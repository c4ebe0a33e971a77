"""A `Config` as a file again: every default spelt out, loadable to the same `Config`."""

from __future__ import annotations

from typing import Any

import yaml

from tutti.config.read import FLOAT, INT, TAG
from tutti.config.schema import Config


class _Dumper(yaml.SafeDumper):
    """Quotes whatever any YAML reader, old rules or new, would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Spell everything out; `*id001` is for machines."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        """Indent lists below their key."""
        return super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Line breaks that only YAML knows are folded away in any style but this one, which escapes them."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(TAG + "str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(TAG + "float", FLOAT, None)
_Dumper.add_implicit_resolver(TAG + "int", INT, None)


def dump_config(config: Config) -> str:
    """Resolved YAML; `parse_config(dump_config(c), "")` equals `c`."""
    return _dump(config.model_dump())  # not as JSON, which knows no infinity


def dump_changes(config: Config) -> str:
    """The same without defaults: what somebody would write by hand."""
    return _dump(config.model_dump(exclude_defaults=True))


def _dump(values: dict[str, Any]) -> str:
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def one_line(value: Any) -> str:
    """A single value as it may stand after `key: `."""
    text = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, default_flow_style=True, width=float("inf"))
    return str(text).removesuffix("\n").removesuffix("\n...")
