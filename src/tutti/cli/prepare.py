"""`tutti prepare`: text → tokens on disk, ready to train on."""

from __future__ import annotations

import typer

from tutti.cli.output import Json, only_the_answer, print_json, print_records, say
from tutti.cli.validate import ConfigFile, Overrides


def prepare(config: ConfigFile, overrides: Overrides = None, json_output: Json = False) -> None:
    """Read, clean, tokenize and store the text of a configuration. Done once; found again by its content."""
    from tutti.config import load_config

    resolved = load_config(config, overrides or ())
    with only_the_answer(json_output):
        from tutti import api

        prepared = api.prepare(resolved, say=say)
    splits = {
        name: {key: getattr(split, key) for key in ("documents", "bytes", "tokens")}
        for name, split in prepared.splits.items()
    }
    if json_output:
        print_json(
            {
                "directory": prepared.directory,
                "fingerprint": prepared.fingerprint,
                "vocabulary": prepared.vocabulary,
                "splits": splits,
                "choices": prepared.choices,
            }
        )
        return
    print_records(f"prepared in {prepared.directory}", [{"part": name} | row for name, row in splits.items()])
    for choice in prepared.choices:
        typer.echo(choice)
