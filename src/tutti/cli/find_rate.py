"""`tutti find-rate`: a learning rate that suits a model and its data, from one short run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutti.cli.output import Json, only_the_answer, print_json, print_rows
from tutti.cli.validate import ConfigFile, Overrides
from tutti.launch.server import start_server

#: Rows of the table, beside those with marks.
_ROWS = 12
_MARKS = {
    "steepest": "falls fastest",
    "suggestion": "take this",
    "lowest": "lowest",
    "diverges": "comes apart",
}


def find_rate(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps, each at a larger rate.")] = 200,
    lowest: Annotated[
        float | None, typer.Option("--from", help="Rate of the first step.", show_default="by optimizer")
    ] = None,
    highest: Annotated[
        float | None, typer.Option("--to", help="Rate of the last step.", show_default="by optimizer")
    ] = None,
    png: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("find-rate.png"),
    json_output: Json = False,
) -> None:
    """Find a learning rate: train a few steps at ever larger ones, in a run that is thrown away."""
    from tutti.config import load_config

    wanted = load_config(config, overrides or ())
    with only_the_answer(json_output):
        start_server()  # before this process imports torch, so that both do it at once
        import tutti

        found = tutti.find_rate(
            wanted, steps=steps, lowest=lowest, highest=highest, png=png, console=not json_output
        )
    if json_output:
        print_json(found)
        return
    _print(found, wanted.train.learning_rate)


def _print(found: dict[str, Any], written: float | str) -> None:
    """The table, what was found, what else would be taken, and the line for the file."""
    rates, smooth = found["rates"], found["smooth"]
    apart = max(1, len(rates) // _ROWS)
    beside: dict[int, list[str]] = {index: [] for index in range(apart // 2, len(rates), apart)}
    for key, what in _MARKS.items():
        if (rate := found[key]) is not None:
            off = [max(one / rate, rate / one) for one in rates]
            nearest = off.index(min(off))
            beside.setdefault(nearest, []).append(what)
    rows = [[f"{rates[i]:.1e}", f"{smooth[i]:.4f}", ", ".join(beside[i])] for i in sorted(beside)]
    print_rows("loss by learning rate", ["rate", "loss, smoothed", ""], rows)
    typer.echo(f"suggestion  {found['suggestion']:.1e}: {found['reason']}")
    times = found["suggestion"] / found["auto"]
    typer.echo(
        f"auto        {found['auto']:.1e}: {found['auto_reason']} (the suggestion is {times:.2g} times that)"
    )
    if written != "auto":
        typer.echo(f"your file   {written:.1e}")
    typer.echo(f"picture     {found['png']}")
    typer.echo(f"\nin your file:\n  train:\n    learning_rate: {found['suggestion']:.1e}")
