"""`tutti generate`: let the model of a run write."""

from __future__ import annotations

from typing import Annotated

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json


def generate(
    run: Run,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to go on from.")],
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write for each prompt.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=1, help="Choose among so many likeliest tokens.")] = 50,
    suffix: Annotated[
        str, typer.Option(help="What comes after what is written; of a model trained with task.infill.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same text.")] = 0,
    json_output: Json = False,
) -> None:
    """Continue each prompt with the model of a run, or with one that `tutti compress` made."""
    with only_the_answer(json_output):
        from tutti import api

        texts = api.generate(
            find_run(run),
            prompts,
            new_tokens=new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            suffix=suffix,
        )
    if json_output:
        pairs = zip(prompts, texts, strict=True)
        print_json({"texts": [{"prompt": prompt, "text": text} for prompt, text in pairs]})
        return
    for prompt, text in zip(prompts, texts, strict=True):
        typer.echo(f"{prompt}{text}{suffix}\n")
