"""`tutti label`: labels for texts that have none, where the model of a run is sure, to learn from them as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json, say
from tutti.cli.predict import read_records

#: Labels that nothing got, of which the names are said.
_NAMED = 5


def label(
    run: Run,
    file: Annotated[
        Path,
        typer.Option(help="Texts, in any format that a run reads; `-`: JSONL from standard input."),
    ],
    above: Annotated[float, typer.Option(help="The least chance of a label that is taken for sure.")] = 0.9,
    most: Annotated[
        int | None, typer.Option(help="At most so many texts of each label, the surest first.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Print the texts that the model of a run is sure about, with their labels: JSONL for data.extra_source."""
    with only_the_answer(json_output):
        from tutti import api

        place = find_run(run)
        records = read_records(file, place)
        found = api.label(place, records, above=above, most=most)
    if json_output:
        print_json(found)
        return
    for example in found["examples"]:
        typer.echo(json.dumps(example, ensure_ascii=False))
    for line in _report(found, len(records), above):
        say(line)


def _report(found: dict[str, Any], texts: int, above: float) -> list[str]:
    """What was taken and what was not, in words."""
    labels = {name: count for name, count in found["labels"].items() if count}
    without = [name for name, count in found["labels"].items() if not count]
    lines = [f"{len(found['examples']):,} of {texts:,} texts have a label with a chance above {above:g}"]
    for key, words in (
        ("unsure", "are not so sure"),
        ("known", "are known to the run, or occur twice"),
        ("surplus", "are more of their label than asked for"),
        ("empty", "are empty"),
    ):
        if found[key]:
            lines.append(f"{found[key]:,} {words}")
    if checked := found["checked"]:
        right = f", and right about {checked['right']:,} of these" if checked["sure"] else ""
        lines.append(
            f"of {checked['of']:,} validation examples the model is as sure about {checked['sure']:,}{right}"
        )
    lines += [f"    {count:>7,}  {name}" for name, count in sorted(labels.items(), key=lambda one: -one[1])]
    if without:
        named = ", ".join(without[:_NAMED]) + (", …" if len(without) > _NAMED else "")
        lines.append(f"none of {len(without)} of {len(found['labels'])} labels: {named}")
    return lines
