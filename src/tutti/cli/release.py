"""`tutti deploy`, `rollback`, `releases`: which version of a model a service serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutti.cli.output import Json, find_run, only_the_answer, print_json, print_records, say

Releases = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of releases.")]


def deploy(
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The directory of releases; made if there is none.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A run, what `tutti compress` wrote, or a Hugging Face directory."
        ),
    ] = None,
    canary: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Let it answer only such a share of requests, beside what serves.",
        ),
    ] = None,
    canary_header: Annotated[
        bool, typer.Option("--canary-header", help="Let it answer only who sends `X-Tutti-Version: canary`.")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Let the canary answer everybody; without RUN.")
    ] = False,
    note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    json_output: Json = False,
) -> None:
    """Make a model the next version of a service, or its canary; `tutti serve DIR` follows by itself."""
    from tutti.core.errors import ConfigError

    if promote and (model is not None or canary is not None or canary_header):
        raise ConfigError("--promote is about the canary that is there", "leave out RUN and --canary")
    if not promote and model is None:
        raise ConfigError("there is nothing to deploy", "name a run; or --promote the canary")
    if canary is not None and canary_header:
        raise ConfigError(
            "--canary PERCENT and --canary-header are two ways", "the header is heard with a percentage, too"
        )
    with only_the_answer(json_output):
        from tutti import serving

        if model is None:
            done = serving.promote(to, note=note)
        else:
            share = 0.0 if canary_header else canary
            done = serving.deploy(find_run(model), to, canary=share, note=note, console=not json_output)
    if json_output:
        print_json(done)
        return
    number, percent = done["version"], done.get("percent")
    if percent is None:
        say(f"version {number} of {to} serves from now on")
    else:
        say(
            f"version {number} of {to} is the canary: {percent:g} % of requests, and who sends X-Tutti-Version: canary"
        )
    _hint(done)


def rollback(
    directory: Releases,
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="[VERSION]", help="To serve; by default the canary goes, or the former comes back."
        ),
    ] = None,
    note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    json_output: Json = False,
) -> None:
    """Take the canary away; or, where there is none, serve the former version again."""
    with only_the_answer(json_output):
        from tutti import serving

        done = serving.rollback(directory, version, note=note)
    if json_output:
        print_json(done)
        return
    say(f"version {done['version']} of {directory} is rolled back; version {done['serving']} serves")
    _hint(done)


def releases(directory: Releases, json_output: Json = False) -> None:
    """List the versions of a service: which serves, which were rolled back and why."""
    with only_the_answer(json_output):
        from tutti import serving

        found = serving.releases(directory)
    if json_output:
        print_json(found)
        return
    if not found["versions"]:
        typer.echo(f"nothing was deployed to {directory} yet")
    else:
        print_records(f"releases in {directory}", [_row(one) for one in found["versions"]])
    _hint(found)


def _row(one: dict[str, Any]) -> dict[str, Any]:
    from tutti.observe import words

    state = one["state"] if "percent" not in one else f"canary, {one['percent']:g} %"
    step = "" if one.get("step") is None else f", step {one['step']}"
    return {
        "version": one["version"],
        "state": state,
        "since": words.date(one["since"]),
        "by": one["by"],
        "model": f"{one['model']}{step}" if "model" in one else one["problem"],
        "weights": one.get("weights", "–")[:12],
        "why": one["why"] or "–",
    }


def _hint(done: dict[str, Any]) -> None:
    say("next: " + "; or ".join(done["next"]))
