"""`tutti prepare`: text → tokens on disk, ready to train on."""

from __future__ import annotations

from typing import Any

import typer

from tutti.cli.output import Json, only_the_answer, print_json, print_records, say
from tutti.cli.validate import ConfigFile, Overrides

#: Of why a step did what it did, and of what cannot be read, so many are told.
_REASONS = _NAMED = 8


def prepare(config: ConfigFile, overrides: Overrides = None, json_output: Json = False) -> None:
    """Read, clean, tokenize and store a configuration's text or examples. Done once; found again by its content."""
    from tutti.config import load_config

    resolved = load_config(config, overrides or ())
    with only_the_answer(json_output):
        from tutti import api
        from tutti.data.labelled import PreparedExamples
        from tutti.data.manifest import left_out

        prepared = api.prepare(resolved, say=say)
    steps: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    summary = ""
    if isinstance(prepared, PreparedExamples):
        units, parts = ("examples", "rows", "tokens"), dict[str, Any](prepared.parts)
    else:
        units, parts = ("documents", "bytes", "tokens"), dict[str, Any](prepared.splits)
        steps = [step.model_dump(mode="json") for step in prepared.manifest.steps]
        counts = prepared.counts.model_dump(mode="json")
        summary = left_out(prepared.counts, prepared.manifest.steps)
    splits = {name: {key: getattr(part, key) for key in units} for name, part in parts.items()}
    if json_output:
        print_json(
            {
                "directory": prepared.directory,
                "fingerprint": prepared.fingerprint,
                "vocabulary": prepared.vocabulary,
                "splits": splits,
                "counts": counts,
                "steps": steps,
                "choices": prepared.choices,
            }
        )
        return
    print_records(f"prepared in {prepared.directory}", [{"part": name} | row for name, row in splits.items()])
    if counts:
        typer.echo(f"{counts['documents']:,} documents were read of {counts['files']:,} files; {summary}")
        for one in counts["skipped"][:_NAMED]:
            typer.echo(f"left out, {one['reason']}: {one['name']}")
        if counts["unreadable"] > _NAMED:
            typer.echo(f"… and {counts['unreadable'] - _NAMED:,} more; --json names the first hundred")
    if steps:
        _print_steps(steps)
    for choice in prepared.choices:
        typer.echo(choice)


def _print_steps(steps: list[dict[str, Any]]) -> None:
    """What every step did, then why and to what: a few examples of each."""
    counted = ("step", "seen", "changed", "dropped", "bytes")
    print_records("what was done to the text", [{key: step[key] for key in counted} for step in steps])
    for step in steps:
        for reason, number in list(step["reasons"].items())[:_REASONS]:
            typer.echo(f"{step['step']}: {number:,} × {reason}")
        for example in step["examples"]:
            typer.echo(f"{step['step']}, {example['where']}: {example['text']}")
