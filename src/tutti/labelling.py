"""Labels that a trained model is sure about, for another one to learn from as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tutti.core.errors import RunError
from tutti.core.record import Asked
from tutti.data.labelled import known_by
from tutti.package import Asker
from tutti.tasks import Example
from tutti.tasks.task import EmptyText
from tutti.train.labelled import LabelledJob
from tutti.trained import asker_of, load_trained


def label(
    run: Path, records: Sequence[Asked], *, above: float = 0.9, most: int | None = None
) -> dict[str, Any]:
    """Labels for `records` by the model of a run, where it is sure: what another run can learn from as well.

    Returns `examples` (the fields that the run reads, the label, and the `score`, its chance), the surest first;
    `labels`: how many there are of each of the run's labels; and the numbers of records that are `unsure` (their chance
    is not above `above`), `known` (the run has their text, to train on or to be judged by, or another record has),
    `surplus` (there are `most` surer ones of that label) and `empty` (without text). `checked`: of so many validation
    examples (`of`) the model is as `sure`, and `right` about so many of these (None: the run has none).

    Raises:
        TuttiError: there is no such run, its task gives no text one label, or a record is not one of its.
    """
    if not 0 <= above < 1 or (most is not None and most < 1):
        raise RunError(
            f"above is {above} and most is {most}", "give a chance from 0 to below 1, and 1 or more examples"
        )
    job, config, _ = load_trained(run)
    if not isinstance(job, LabelledJob) or config.task.kind != "classify" or config.task.multiple:
        raise RunError(f"{run} gives no text one label", "name a run with task: classify, without multiple")
    task, parts, called = job.task, job.prepared.parts, config.task.fields
    examples = []
    for record in task.as_records(records):
        with suppress(EmptyText):
            examples.append(task.example(record, labelled=False))
    known = {known_by(task, example) for part in parts.values() for example in part.read()}
    new: dict[str, Example] = {}
    for example in examples:
        if (text := known_by(task, example)) not in known:
            new.setdefault(text, example)
    asker = asker_of(job, config)
    said = _likeliest(asker, called, list(new.values()))
    counts, kept = dict.fromkeys(job.prepared.labels.names, 0), []
    for example, (name, score) in sorted(
        zip(new.values(), said, strict=True), key=lambda one: one[1].score, reverse=True
    ):
        if score > above and (most is None or counts[name] < most):
            counts[name] += 1
            kept.append(_fields(called, example | {"label": name}) | {"score": score})
    unsure = sum(score <= above for _, score in said)
    checked = None
    if "validation" in parts:
        true = parts["validation"].read()
        sure = [
            name == example["labels"][0]
            for example, (name, score) in zip(true, _likeliest(asker, called, true), strict=True)
            if score > above
        ]
        checked = {"of": len(true), "sure": len(sure), "right": sum(sure)}
    return {
        "examples": kept,
        "labels": counts,
        "unsure": unsure,
        "known": len(examples) - len(new),
        "surplus": len(new) - unsure - len(kept),
        "empty": len(records) - len(examples),
        "checked": checked,
    }


class _Guess(NamedTuple):
    label: str
    score: float


def _likeliest(asker: Asker, called: Mapping[str, str], examples: Sequence[Example]) -> list[_Guess]:
    """The likeliest label of each of `examples`, and its chance."""
    said = asker.predict([_fields(called, example) for example in examples])
    return [_Guess(one["label"], one["scores"][one["label"]]) for one in said]


def _fields(called: Mapping[str, str], example: Example) -> dict[str, Any]:
    """`example`, without what it learned by, as the user's files call its fields."""
    return {called.get(name, name): value for name, value in example.items() if name != "labels"}
