"""`tutti compress`: a smaller, faster model from that of a run, and the table of what it costs and gains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json, print_rows
from tutti.cli.train import program
from tutti.launch.signals import stop_requests


def compress(
    run: Run,
    target: Annotated[
        str,
        typer.Option(
            help='What it has to be, for example "4x smaller, 3x faster, <1% worse". Speed is that at batch 1: '
            "one text after the other.",
        ),
    ] = "<1% worse",
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="RECIPE",
            help="Words joined by +: layers:4, heads:0.5, channels:0.5 (these learn again), wanda:0.5, "
            "magnitude:0.5, int8, int8-mixed, int8-weights, int4, int4-gptq, int4-awq, onnx. Several times: each is "
            "tried. Usual ones by default.",
        ),
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIRECTORY", help="Where to; RUN/compressed by default."),
    ] = None,
    recovery_steps: Annotated[
        int | None,
        typer.Option(
            "--recover",
            metavar="STEPS",
            min=1,
            help="Of training for what lost layers, heads or channels; the run's own by default.",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Make the model of a run smaller and faster, measure it beside itself, and keep it if it is good enough."""
    with only_the_answer(json_output), stop_requests(_stop):
        from tutti import api
        from tutti.compress.asked import AskedSubject
        from tutti.compress.writer import WriterSubject
        from tutti.observe.page import read_config
        from tutti.observe.question import first_question
        from tutti.observe.words import figure

        report = api.compress(
            find_run(run),
            recipes=recipe or (),
            target=target,
            destination=destination,
            recovery_steps=recovery_steps,
            console=not json_output,
        )
    if json_output:
        print_json(report)
        return
    metric = report["metric"]
    rows = []
    for line in report["lines"]:
        rows.append(
            [
                line["recipe"] + (" ← kept" if line["recipe"] == report["kept"] else ""),
                figure(line["quality"][metric]),
                f"{line['weight_bytes'] / 1e6:.1f} ({line['times_smaller']:.1f}x)",
                f"{line['memory_bytes'] / 1e6:.0f}",
                f"{line['seconds_batch_1'] * 1e3:.2f} ({line['times_faster_batch_1']:.1f}x)",
                f"{line['seconds_batch_32'] * 1e3:.1f} ({line['times_faster_batch_32']:.1f}x)",
            ]
        )
    words = (WriterSubject if "tokens_per_second" in report["lines"][0] else AskedSubject).words
    heads = ["recipe", metric, "MB", "memory, MB", words.one, words.many]
    print_rows(f"target: {report['target']}", heads, rows)
    typer.echo(f"\nkept in {report['directory']}; the table is {Path(report['run']) / 'compression.md'}")
    question = first_question(read_config(Path(report["run"])))
    typer.echo(f"\nnext:\n  {question.command(program(), Path(report['directory']))}")


def _stop() -> None:
    """Also SIGTERM leaves nothing lying about."""
    raise KeyboardInterrupt
