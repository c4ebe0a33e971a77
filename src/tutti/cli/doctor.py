"""`tutti doctor`: what this machine has, how fast it is, and what is missing."""

from __future__ import annotations

from typing import Any

import typer

from tutti.cli.output import Json, only_the_answer, plain, print_json, print_nested


def doctor(json_output: Json = False) -> None:
    """Measure this machine: cores, memory, matrix products, disk, network, devices; say what is missing."""
    with only_the_answer(json_output):
        from tutti import api

        machine: dict[str, Any] = plain(api.doctor().to_dict())
    if json_output:
        print_json(machine)
        return
    missing = machine.pop("missing", [])
    print_nested("machine", machine)
    for item in missing:
        typer.echo(f"missing: {item['what']}\n  → {item['how']}")
    if not missing:
        typer.echo("nothing is missing")
