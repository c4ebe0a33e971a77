"""`tutti schema`: the JSON Schema of a configuration, for editors and other programs."""

from __future__ import annotations

from tutti.cli.output import Json, print_json


def schema(json_output: Json = False) -> None:
    """Print the JSON Schema of a configuration (it is JSON with or without --json)."""
    from tutti.config import json_schema

    print_json(json_schema())
