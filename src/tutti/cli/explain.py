"""`tutti explain`: which words of a text had to do with what a model says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json, say
from tutti.core.files import write_text_atomically
from tutti.core.rundir import unwritable

if TYPE_CHECKING:
    from tutti.explain import Explanation

#: Words that are shown of a text on the command line.
_SHOWN = 8


def explain(
    run: Run,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Examples instead of texts, in any format that a run reads; `-`: JSONL from standard input."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Why this label, whether the model says so or not; of entities: this kind only."),
    ] = None,
    method: Annotated[
        Literal["auto", "gradients", "ablation"],
        typer.Option(help="gradients (integrated), ablation (of one word after the other), or auto."),
    ] = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a page with the texts, shaded, as well.")] = None,
    json_output: Json = False,
) -> None:
    """Say how much each word of a text had to do with the label, or with each entity, that the model of a run found."""
    from tutti.cli.predict import records_of
    from tutti.core.errors import RunError

    if html is not None and not html.parent.is_dir():
        raise RunError(f"there is no directory {html.parent} for {html.name}", "make it, or name another")
    with only_the_answer(json_output):
        from tutti import api
        from tutti.explain import write_explanations

        place = find_run(run)
        records = records_of(texts, file, place)
        explained = api.explain(place, records, label=label, method=method)
    if html is not None:
        try:
            write_text_atomically(html, write_explanations(f"Why {run} says so", explained))
        except OSError as error:
            raise unwritable(html, error) from error
        say(f"the page: {html}")
    if json_output:
        print_json({"explanations": [[one.told() for one in some] for some in explained]})
        return
    for record, some in zip(records, explained, strict=True):
        typer.echo(_shown(record))
        for one in some:
            typer.echo(_lines(one))
        if not some:
            typer.echo("    no entities")


def _shown(record: Any) -> str:
    return record if isinstance(record, str) else " | ".join(str(value) for value in record.fields.values())


def _lines(explanation: Explanation) -> str:
    what = explanation.label
    if explanation.entity is not None:
        what = f"{explanation.entity['text']} ({what})"
    weighed = sorted(
        zip(explanation.weights, explanation.reading.words, strict=True), key=lambda one: -abs(one[0])
    )
    lines = [f"    {what} {explanation.chance:.2f}"]
    lines += [f"      {weight:+6.2f}  {word.text}" for weight, word in weighed[:_SHOWN]]
    if len(weighed) > _SHOWN:
        lines.append(f"      and {len(weighed) - _SHOWN} words that are worth less (--json has all)")
    return "\n".join(lines)
