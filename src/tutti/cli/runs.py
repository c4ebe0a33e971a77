"""`tutti runs`: what has been run here, and how runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json, print_nested, print_records, say

app = typer.Typer(help="List, show and compare runs.", no_args_is_help=True)


@app.command("list")
def list_runs(
    directory: Annotated[Path, typer.Option("--in", metavar="DIRECTORY", help="Holds the runs.")] = Path(
        "runs"
    ),
    json_output: Json = False,
) -> None:
    """List the runs in a directory."""
    with only_the_answer(json_output):
        from tutti import api

        found = api.list_runs(directory)
    if json_output:
        print_json({"runs": found})
    elif found:
        from tutti.observe import words

        rows: list[Any] = [
            {
                "run": row.get("name"),
                "state": row.get("state"),
                "started": words.date(row["started"]) if row.get("started") else "–",
                "steps": row.get("steps"),
                "validation loss": words.figure(row.get("validation_loss")),
                "bits per byte": words.figure(row.get("validation_bits_per_byte")),
            }
            for row in found
        ]
        print_records(f"runs in {directory}", rows)
    else:
        typer.echo(f"there are no runs in {directory}")


@app.command("show")
def show_run(run: Run, json_output: Json = False) -> None:
    """Show the figures of one run."""
    with only_the_answer(json_output):
        from tutti import api

        shown = api.show_run(find_run(run))
    if json_output:
        print_json(shown)
    else:
        print_nested(str(run), shown)


@app.command("compare")
def compare_runs(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more.")],
    png: Annotated[Path | None, typer.Option(help="Draw their losses into this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write all of it as a page into this file.")] = None,
    json_output: Json = False,
) -> None:
    """Compare runs side by side; runs that differ in seeds alone count as one, and differences are judged by their
    spread."""
    from tutti.core.errors import RunError

    if len(runs) < 2:
        raise RunError("one run has nothing to be compared with", "name two runs or more")
    with only_the_answer(json_output):
        from tutti import api

        compared = api.compare_runs([find_run(run) for run in runs], png=png, html=html)
    for file in (png, html):
        if file is not None:
            say(f"written to {file}")
    if json_output:
        print_json(compared)
        return
    told = [one["sentence"] for one in compared.get("differences", ())]
    print_nested("", {key: value for key, value in compared.items() if key not in ("arms", "differences")})
    for line in told:
        typer.echo(line)
