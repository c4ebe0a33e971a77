"""`tutti join`: this machine takes part in a run that another one started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.failures import INTERRUPTED
from tutti.cli.output import Json, only_the_answer, print_json
from tutti.launch.server import start_server


def join(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="Where the run listens: what its --listen says.")
    ],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="A copy of join.key in the run's directory on its first machine."),
    ] = Path("join.key"),
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="How many replicas this machine takes at most. Default: one for each core."),
    ] = None,
    runs: Annotated[
        Path, typer.Option(metavar="DIRECTORY", help="Where this machine keeps its part of the run.")
    ] = Path("runs"),
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY", help="Where it keeps prepared text. Default: as the run's data.cache."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Take part in a run that another machine started; Ctrl-C leaves it, and the others go on."""
    with only_the_answer(json_output):
        start_server()  # before this process imports torch, so that both do it at once
        from tutti import api

        result = api.join(address, key, replicas=replicas, runs=runs, cache=cache, console=not json_output)
    if json_output:
        print_json(result)
    elif result["state"] == "left":
        typer.echo(f"left run {result['run']}; the others go on. The same command joins it again.")
    elif result["state"] == "interrupted":
        typer.echo(
            f"run {result['run']} was stopped on its first machine; join again when it goes on there (--resume)"
        )
    else:
        typer.echo(f"run {result['run']} has ended; model and report are on the machine that started it.")
    if result["state"] != "finished":
        raise SystemExit(INTERRUPTED)
