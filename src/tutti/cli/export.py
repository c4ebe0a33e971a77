"""`tutti export`: the model of a run for other programs: `transformers`, onnxruntime, llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json

# As in `tutti.api`, which takes seconds to import.
Form = Literal["hugging_face", "onnx", "gguf"]
Bits = Literal["f32", "f16", "q8_0", "q4_0"]


def export(
    run: Run,
    destination: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="Where to; RUN/export, RUN/export-onnx or RUN/model-WEIGHTS.gguf by default.",
        ),
    ] = None,
    format: Annotated[
        Form,
        typer.Option(
            help="A directory for Hugging Face's libraries or for onnxruntime, or a file for llama.cpp."
        ),
    ] = "hugging_face",
    weights: Annotated[
        Bits | None,
        typer.Option(
            help="Of a GGUF file: 32 or 16 bits, or 8 or 4 in blocks that share a scale.", show_default="f16"
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Hand on a run's model (the newest; of tasks with metrics the best) and tokenizer: in Hugging Face format, as
    ONNX, or as a GGUF file."""
    with only_the_answer(json_output):
        from tutti import api

        path = api.export(find_run(run), destination, format=format, weights=weights)
    if json_output:
        print_json({"path": path})
    else:
        typer.echo(f"exported to {path}")
