"""`tutti predict`: ask the model of a run about texts."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutti.cli.evaluate import Run
from tutti.cli.output import Json, find_run, only_the_answer, print_json

if TYPE_CHECKING:
    from tutti.core.record import Record


def predict(
    run: Run,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Texts; of recommendations what was had, like a|b."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Examples instead of texts, in any format that a run reads; `-`: JSONL from standard input."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Say what the model of a run makes of texts: labels, entities, answers, items, vectors, or a text of its own."""
    with only_the_answer(json_output):
        from tutti import api

        place = find_run(run)
        records = records_of(texts, file, place)
        predictions = api.predict(place, records)
    if json_output:
        print_json({"predictions": predictions})
        return
    for record, prediction in zip(records, predictions, strict=True):
        if file is not None:
            typer.echo(json.dumps(prediction, ensure_ascii=False))
        else:
            typer.echo(f"{record}\n    {_line(prediction)}")


def records_of(texts: list[str] | None, file: Path | None, place: Path) -> list[Any]:
    """What the model at `place` is asked about: `texts`, or the examples in `file`.

    Raises:
        RunError: there is neither, or both.
    """
    from tutti.core.errors import RunError

    if (file is None) == (not texts):
        raise RunError(
            "there is nothing to judge" if file is None else "both texts and --file are given",
            "give texts, or --file FILE",
        )
    return list(texts or ()) if file is None else read_records(file, place)


def read_records(file: Path, place: Path) -> list[Record]:
    """The examples in `file`, read as the data of the model at `place`; `-`: standard input."""
    from tutti.data.labelled import read_file, read_jsonl, to_be_asked
    from tutti.trained import data_of

    data = data_of(place)
    if str(file) != "-":
        return list(read_file(file, data))
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=data.encoding, errors="surrogateescape")
    return list(to_be_asked(read_jsonl(sys.stdin, "standard input"), data))


def _line(prediction: dict[str, Any]) -> str:
    """A prediction in one line."""
    if isinstance(prediction.get("entities"), list):
        found = [f"{entity['text']} ({entity['label']})" for entity in prediction["entities"]]
        return ", ".join(found) or "no entities"
    if "embedding" in prediction:
        first = ", ".join(f"{value:.3f}" for value in prediction["embedding"][:4])
        return f"[{first}, …] ({len(prediction['embedding'])} numbers; --json gives all)"
    if isinstance(prediction.get("items"), list):
        return ", ".join(f"{one['item']} {one['score']:.2f}" for one in prediction["items"][:5])
    if "text" in prediction and "scores" not in prediction:
        return str(prediction["text"])
    if "answer" in prediction:
        return prediction["answer"] or "no answer"
    scores = prediction["scores"]
    if "labels" in prediction:
        return (
            ", ".join(f"{label} {scores.get(label, 0):.2f}" for label in prediction["labels"]) or "no label"
        )
    label = prediction["label"]
    others = ", ".join(f"{name} {value:.2f}" for name, value in list(scores.items())[1:4])
    return f"{label} {scores[label]:.2f}    ({others})" if others else f"{label} {scores[label]:.2f}"
