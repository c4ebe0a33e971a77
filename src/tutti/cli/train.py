"""`tutti train`: the main job."""

from __future__ import annotations

from typing import Annotated

import typer

from tutti.cli.failures import INTERRUPTED
from tutti.cli.output import Json, only_the_answer, print_json
from tutti.cli.validate import ConfigFile, Overrides

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run.")]


def train(
    config: ConfigFile, overrides: Overrides = None, resume: Resume = False, json_output: Json = False
) -> None:
    """Train as the configuration says; everything about the run is kept in runs/NAME."""
    from tutti.config import load_config

    resolved = load_config(config, overrides or ())
    with only_the_answer(json_output):
        from tutti import api

        report = api.train(resolved, resume=resume, console=not json_output)
    if json_output:
        print_json(report)
    if report.get("state") == "interrupted":
        raise SystemExit(INTERRUPTED)  # what happened has been said already
