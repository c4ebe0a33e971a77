"""The schema for machines (JSON Schema, for editors) and for readers (a page of tables)."""

from __future__ import annotations

import inspect
from typing import Any

from tutti.config.describe import default_text, section_of, short_kinds, words
from tutti.config.fields import Section
from tutti.config.schema import Config
from tutti.config.service import ServiceConfig


def json_schema() -> dict[str, Any]:
    """JSON Schema of a Tutti file, short forms included."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    _allow_short_forms(Config, schema["properties"], schema["$defs"])
    return schema


def _allow_short_forms(
    section: type[Section], properties: dict[str, Any], definitions: dict[str, Any]
) -> None:
    for key, field in section.model_fields.items():
        inner_section = section_of(field)
        if inner_section is None:
            continue
        _allow_short_forms(inner_section, definitions[inner_section.__name__]["properties"], definitions)
        if kinds := short_kinds(field):
            whole = properties[key]
            inner = {"$ref": whole.pop("$ref")} if "$ref" in whole else {"allOf": whole.pop("allOf")}
            whole["anyOf"] = [inner, *({"type": kind} for kind in kinds)]


def reference_page() -> str:
    """Markdown: one table for the top level and one for each section, made from the schema alone."""
    return _page(
        Config,
        "# Configuration\n",
        "A configuration is a YAML file. Every key has a default, unknown keys are refused, and any key can\n"
        "be given on the command line instead: `tutti train config.yaml train.steps=200 sync=diloco`. An\n"
        "override takes the place of what the file says for that key. `tutti validate` prints the file with\n"
        "every default spelt out. Numbers may be written `1e-3` or `10_000`; `yes`, `no`, `on` and `off`\n"
        "are text.\n",
    )


def service_page() -> str:
    """The same of what a service can be told."""
    return _page(
        ServiceConfig,
        "# Settings of a service\n",
        "A YAML file for `tutti serve RUN --settings service.yaml`. Every key has a default, unknown keys are\n"
        "refused, and any key can be given on the command line instead:\n"
        "`tutti serve RUN keys=keys.json redact.outputs=true`.\n"
        "How they go together: [Guard a service](../how-to/guard.md).\n",
    )


def _page(root: type[Section], *head: str) -> str:
    sections = _sections(root)
    parts = [
        *head,
        "This page is made from the schema (`src/tutti/config/`).\n",
        "## Top level\n",
        _table(root),
    ]
    for key, section in sections.items():
        parts += [f"## `{key}`\n", f"{inspect.getdoc(section)}\n", _table(section, f"{key}.")]
    return "\n".join(parts)


def _sections(root: type[Section], before: str = "") -> dict[str, type[Section]]:
    """All sections by their dotted names; what is in one follows it."""
    found: dict[str, type[Section]] = {}
    for key, field in root.model_fields.items():
        if kind := section_of(field):
            found |= {before + key: kind, **_sections(kind, f"{before}{key}.")}
    return found


def _table(section: type[Section], before: str = "") -> str:
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        inner = section_of(field)
        meaning = field.description or (inspect.getdoc(inner) if inner else "") or ""
        name = f"[`{key}`](#{_anchor(before + key)})" if inner else f"`{key}`"
        default = "" if inner and default_text(field) == "{}" else f"`{default_text(field)}`"
        rows.append(f"| {name} | {_cell(words(field))} | {_cell(default)} | {_cell(meaning)} |")
    return "\n".join(rows) + "\n"


def _anchor(name: str) -> str:
    """As Markdown makes it of a heading: without dots."""
    return name.replace(".", "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
