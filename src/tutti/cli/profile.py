"""`tutti profile`: what holds a training up, and the one thing to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.output import Json, find_run, only_the_answer, print_json
from tutti.cli.validate import Overrides
from tutti.launch.server import start_server


def profile(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|RUN", help="A configuration; or a run, by its directory or its name in ./runs."
        ),
    ],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured.")] = 10,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY", help="Where everything is kept. Default: runs/NAME-profile, or -profile-2, …"
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Train a few steps and say what holds them up: the bottleneck, its evidence, and the one change to make."""
    from tutti.config import load_config

    is_file = Path(target).is_file() or Path(target).suffix in (".yaml", ".yml")
    wanted = load_config(Path(target), overrides or ()) if is_file else find_run(target)
    with only_the_answer(json_output):
        start_server()  # before this process imports torch, so that both do it at once
        from tutti import api

        found = api.profile(
            wanted, overrides=() if is_file else overrides or (), steps=steps, to=to, console=not json_output
        )
    if json_output:
        print_json(found.report)
        return
    from tutti.observe.profile import print_profile

    places = [
        ("Page", found.directory / "profile.md"),
        ("Figures", found.directory / "profile.json"),
        ("Traces", found.directory / "traces"),
    ]
    print_profile(found.figures, found.verdict, places)
