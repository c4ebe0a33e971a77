"""`tutti alerts`: whether alerts arrive, and who sends them when a run is dead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.output import Json, find_run, only_the_answer, print_json, say

app = typer.Typer(help="Try alerts out, and look after runs and services.", no_args_is_help=True)


@app.command("test")
def try_alerts(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A configuration with a section `alerts`.")],
    service: Annotated[bool, typer.Option("--service", help="FILE holds settings of `tutti serve`.")] = False,
    json_output: Json = False,
) -> None:
    """Send a trial to everybody who would be told."""
    with only_the_answer(json_output):
        from tutti.alerting import try_alerts as try_out

        results = try_out(file, service=service)
    if json_output:
        print_json({"receivers": results})
    else:
        for name, problem in results.items():
            typer.echo(f"{name}: {'it took the trial' if problem is None else problem}")
    if any(problem is not None for problem in results.values()):
        raise typer.Exit(2)


@app.command()
def watch(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Whose `alerts` hold for the runs; by default those of each run itself."
        ),
    ] = None,
    service: Annotated[list[str] | None, typer.Option(metavar="URL", help="A service, too.")] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose `alerts` hold for the services.")
    ] = None,
    key_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Variable that holds the service's key, of scope `metrics`."),
    ] = None,
) -> None:
    """Tell receivers what is wrong with runs and services, from outside: also that they are dead. While a run's own
    process tells of it, this one waits."""
    from tutti.alerting import watch_alerts

    watch_alerts(
        [find_run(run) for run in runs or ()],
        config=config,
        services=service or (),
        settings=settings,
        key_variables=key_env or (),
        say=say,
    )
