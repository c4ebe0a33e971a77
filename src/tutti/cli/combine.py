"""`tutti combine`: one model from several runs of the same task, and the table of what each way is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.output import Json, find_run, only_the_answer, print_json, print_rows
from tutti.cli.train import program


def combine(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Runs: directories, or names in ./runs.")
    ],
    destination: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIRECTORY", help="Where to; combined/ of the first run by default."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Make one model of several that learned the same examples: the mean of their weights, if it is the better one."""
    with only_the_answer(json_output):
        from tutti import api
        from tutti.observe.page import read_config
        from tutti.observe.question import first_question

        found = [find_run(run) for run in runs]
        report = api.combine(found, destination=destination, console=not json_output)
    if json_output:
        print_json(report)
        return
    metric, kept = report["metric"], report["kept"]
    rows = [
        [
            line["way"] + (" ← kept" if line == kept else ""),
            ", ".join(Path(run).name for run in line["runs"]),
            str(line["models"]),
            f"{line['quality'][metric]:.4f}",
        ]
        for line in report["lines"]
    ]
    print_rows("", ["way", "runs", "models that compute", f"{metric}, validation"], rows)
    if kept["way"] == "alone":
        typer.echo("\nno mean of weights is better than the best of them alone, which is kept")
    if report["test"] is not None:
        typer.echo(f"\n{metric} of what is kept on the final test: {report['test'][metric]:.4f}")
    typer.echo(f"\nkept in {report['directory']}")
    question = first_question(read_config(found[0]))
    typer.echo(f"\nnext:\n  {question.command(program(), Path(report['directory']))}")
    last = report["lines"][-1]
    if last["models"] > 1 and last["quality"][metric] > kept["quality"][metric]:
        names = ",".join(map(str, found))
        typer.echo(
            f"  {program()} train FILE name=taught distil=[{names}]   # one model learns what all together know"
        )
