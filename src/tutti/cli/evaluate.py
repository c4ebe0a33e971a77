"""`tutti evaluate`: how good is the model of a run?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutti.cli.output import Json, find_run, only_the_answer, print_json, print_pairs

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run: its directory, or its name in ./runs; or what `tutti compress` left in it.",
    ),
]


def evaluate(
    run: Run,
    split: Annotated[
        str | None, typer.Option(help="The part: train, validation or test.", show_default="validation")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples; all by default.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Labelled examples to judge it by instead, in any format that a run reads."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Measure the model of a run: loss, and bits per byte or the metrics of its task."""
    from tutti.core.errors import RunError

    if file is not None and split is not None:
        raise RunError(
            f"{file} is no part of the run's data, as {split} is", "give one of --file and --split"
        )
    split = split or "validation"
    if split not in ("train", "validation", "test"):
        raise RunError(f"there is no part '{split}' of the text", "the parts are train, validation and test")
    with only_the_answer(json_output):
        from tutti import api

        result = api.evaluate(find_run(run), split=split, samples=samples, file=file)
    if json_output:
        print_json(result)
    else:
        print_pairs(f"{run} on {file}" if file is not None else f"{split} of {run}", result)
