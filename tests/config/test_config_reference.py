"""The generated page and JSON Schema know every key, in words that a reader understands."""

import re

from tutti.config import json_schema, reference_page
from tutti.config.describe import (
    PATTERNS,
    all_keys,
    annotation_words,
    field_at,
    pattern_of,
    section_of,
    words,
)


def test_page_has_a_row_for_every_key_and_a_meaning() -> None:
    page = reference_page()
    for path in all_keys():
        rows = [
            line for line in page.splitlines() if line.startswith((f"| `{path[-1]}`", f"| [`{path[-1]}`]"))
        ]
        assert rows, path
        for row in rows:
            assert row.count("|") == 5 + row.count("\\|"), row
            assert row.split("|")[-2].strip(), f"no meaning: {row}"


def test_types_are_plain_words() -> None:
    for path in all_keys():
        field = field_at(path)
        assert field is not None
        said = words(field)
        assert said
        for jargon in ("Optional", "Union", "class", "typing", "matches", "dict", "str", "int"):
            assert re.search(rf"\b{jargon}\b", said) is None, (path, said)
        pattern = pattern_of(field.metadata)
        assert not pattern or pattern in PATTERNS, path
    assert annotation_words(dict[str, int]) == "a mapping of keys to values"


def test_schema_knows_the_short_forms() -> None:
    schema = json_schema()
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    assert {"type": "string"} in schema["properties"]["sync"]["anyOf"]
    assert {"type": "integer"} in schema["properties"]["layout"]["anyOf"]
    for key in ("distil", "remember"):
        assert {"type": "array"} in schema["properties"][key]["anyOf"]
    assert {"type": "array"} not in schema["properties"]["sync"]["anyOf"]
    assert schema["additionalProperties"] is False
    sections = [path for path in all_keys() if (field := field_at(path)) and section_of(field)]
    assert {path[0] for path in sections} <= schema["properties"].keys()
