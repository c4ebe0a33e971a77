"""`tutti export`: the model of a run as a directory that plain `transformers` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json


def export(
    run: Run,
    destination: Annotated[
        Path | None, typer.Option("--to", metavar="DIRECTORY", help="Where to; RUN/export by default.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Write a run's newest weights and tokenizer in Hugging Face format."""
    with only_the_answer(json_output):
        from tutti import api

        path = api.export(find_run(run), destination)
    if json_output:
        print_json({"path": path})
    else:
        typer.echo(f"exported to {path}")
