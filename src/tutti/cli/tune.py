"""`tutti tune`: the settings that train best, found by trials."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutti.cli.failures import INTERRUPTED
from tutti.cli.output import Json, only_the_answer, print_json, print_rows
from tutti.cli.train import program
from tutti.cli.validate import ConfigFile, Overrides
from tutti.launch.server import start_server

if TYPE_CHECKING:
    from tutti.observe.question import Question


def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KEY=VALUES",
            help="What to try: a range (train.learning_rate=1e-5..1e-3) or a list (tune.rank=4,8,16). Several times; "
            "beside, or instead of, what `search` in the file says of that key. Nothing anywhere: what suits the task.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Of this and earlier commands together.", show_default="20"),
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, help="Trials at the same time; they share the machine's cores.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that is there; with --trials: to so many.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Search for the settings that train best; everything about it is kept in runs/NAME-search."""
    from tutti.config import load_config

    wanted = load_config(config, [*(overrides or ()), *map(_as_override, tries or ())])
    with only_the_answer(json_output):
        start_server()  # before this process imports torch, so that both do it at once
        from tutti import api

        report = api.tune(wanted, trials=trials, parallel=parallel, resume=resume, console=not json_output)
    words = [
        "tune",
        str(config),
        *(overrides or ()),
        *(word for one in tries or () for word in ("--try", one)),
    ]
    words += ["--parallel", str(parallel)] if parallel > 1 else []
    if json_output:
        print_json(report)
    else:
        from tutti.observe.question import first_question

        question = first_question(wanted.model_dump())
        _print_ending(report, Path(wanted.runs).expanduser() / wanted.name, shlex.join(words), question)
    if report["state"] == "interrupted":
        raise SystemExit(INTERRUPTED)


def _as_override(text: str) -> str:
    key, equals, values = text.partition("=")
    if "," in values and not values.lstrip().startswith(("[", "{")):
        values = f"[{values}]"
    return f"search.{key}{equals}{values}"


def _print_ending(report: dict[str, Any], run: Path, words: str, question: Question) -> None:
    """The table, what mattered, and commands that work as printed; `question`: for such a model."""
    from tutti.observe.words import percent
    from tutti.search.outcome import table

    name, directory, best = program(), Path(report["directory"]), report["best"]
    typer.echo()
    head, rows = table(report)
    mark = [[f"{row[0]} ←" if best and row[0] == str(best["trial"]) else row[0], *row[1:]] for row in rows]
    print_rows(f"search {directory.name}", head, mark)
    if report["importances"]:
        shares = (f"{key} {percent(share)}" for key, share in report["importances"].items())
        typer.echo(f"what made the difference: {', '.join(shares)}")
    typer.echo(f"Table     {directory / 'search.md'}")
    if best:
        typer.echo(f"Settings  {directory / 'best.yaml'}\nModel     {Path(best['run']) / 'export'}")
    if report["state"] == "interrupted":
        typer.echo(f"\nresume with:\n  {name} {words} --resume")
        return
    rename = f" name={run.name}-best" if run.exists() else ""
    moves = [
        (
            f"{name} train {shlex.quote(str(directory / 'best.yaml'))}{rename}",
            "train with the best settings",
        ),
        (question.command(name, Path(best["run"])), "ask the best model"),
        (
            f"{name} {words} --resume --trials {2 * report['trials_planned']}",
            "search on, to twice the trials",
        ),
    ]
    width = min(60, max(len(command) for command, _ in moves))
    typer.echo("\nnext:")
    for command, purpose in moves:
        typer.echo(f"  {command:<{width}}   # {purpose}")
