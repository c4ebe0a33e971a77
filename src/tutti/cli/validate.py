"""`tutti validate`: is this configuration good, and what does it say in full?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.output import Json, print_json, say

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example train.steps=200 sync=diloco."),
]


def validate(config: ConfigFile, overrides: Overrides = None, json_output: Json = False) -> None:
    """Check a configuration; print it with every default spelt out, or everything that is wrong."""
    from tutti.config import dump_config, load_config

    resolved = load_config(config, overrides or ())
    if json_output:
        print_json({"ok": True, "config": resolved.model_dump()})
        return
    typer.echo(dump_config(resolved), nl=False)
    say(f"{config} is ok")
