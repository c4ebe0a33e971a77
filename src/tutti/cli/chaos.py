"""`tutti chaos`: train while things break."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.failures import INTERRUPTED
from tutti.cli.output import Json, find_run, only_the_answer, print_json, print_rows
from tutti.cli.validate import Overrides

Config = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file (not with --report).")
]
Lines = list[str] | None


def chaos(
    config: Config = None,
    overrides: Overrides = None,
    kill: Annotated[
        Lines, typer.Option(metavar="WHEN[@REPLICA]", help="Kill a replica: 30s@2, or every:60s on average.")
    ] = None,
    stop: Annotated[
        Lines, typer.Option(metavar="WHEN+LENGTH[@REPLICA]", help="Freeze a replica for a while: 20s+5s@1.")
    ] = None,
    slow: Annotated[
        Lines,
        typer.Option(metavar="WHEN+LENGTH:SPEED%[@REPLICA]", help="Slow a replica down: 10s+30s:50%@0."),
    ] = None,
    cut: Annotated[
        Lines,
        typer.Option(
            metavar="WHEN+LENGTH[@REPLICA]",
            help="Cut a replica's network for a while: 40s+10s@2 (needs root).",
        ),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A YAML file with such lines under kill, stop, slow and cut."),
    ] = None,
    seed: Annotated[int, typer.Option(help="What is left to chance follows from it.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the same undisturbed first, as NAME-undisturbed.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="Compare with this undisturbed run.")
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="RUN", help="Train nothing: report what hit a run that is there.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Train while things break, and report what it cost; in runs/NAME, chaos.md and chaos.json."""
    from tutti.core.errors import ConfigError

    given = {"kill": kill or [], "stop": stop or [], "slow": slow or [], "cut": cut or []}
    other = None if against is None else find_run(against)
    if report is not None:
        if config is not None or schedule is not None or compare or any(given.values()):
            raise ConfigError("--report trains nothing", "give it alone, or with --against RUN and --json")
        run = find_run(report)
        with only_the_answer(json_output):
            from tutti import api

            figures = api.chaos_report(run, against=other)
    else:
        if config is None:
            raise ConfigError(
                "there is no configuration",
                "tutti chaos CONFIG.yaml --kill 30s@1, or tutti chaos --report RUN",
            )
        run, figures = _disturb(config, overrides, given, schedule, seed, compare, other, json_output)
    if json_output:
        print_json(figures)
    else:
        from tutti.observe.resilience import resilience_rows

        print_rows(f"run {figures['run']}", ["", " "], resilience_rows(figures))
        typer.echo(f"each disturbance: {run / 'chaos.md'}")
    if report is None and figures["state"] == "interrupted":
        raise SystemExit(INTERRUPTED)


def _disturb(
    config: Path,
    overrides: Overrides,
    given: dict[str, list[str]],
    schedule: Path | None,
    seed: int,
    compare: bool,
    against: Path | None,
    json_output: bool,
) -> tuple[Path, dict[str, object]]:
    from tutti.config import load_config
    from tutti.launch.server import start_server

    wanted = load_config(config, overrides or ())
    with only_the_answer(json_output):
        start_server()  # before this process imports torch, so that both do it at once
        from tutti import api
        from tutti.core.rundir import RunDirectory
        from tutti.disturb import load_schedule

        listed = load_schedule(schedule) if schedule is not None else {}
        lines = {kind: [*listed.get(kind, []), *texts] for kind, texts in given.items()}
        figures = api.chaos(
            wanted, lines, seed=seed, compare=compare, against=against, console=not json_output
        )
    return RunDirectory.of(wanted.runs, wanted.name).path, figures
