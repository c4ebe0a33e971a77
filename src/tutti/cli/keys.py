"""`tutti keys`: who may ask a service."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tutti.cli.output import Json, print_json, print_records, say

app = typer.Typer(help="Make, list, rotate and revoke the keys of a service.", no_args_is_help=True)

_SPAN = re.compile(r"(\d+)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

KeyFile = Annotated[Path, typer.Option("--file", metavar="FILE", help="Holds the keys' hashes.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")]
_FILE = Path("keys.json")


@app.command()
def add(
    name: Name,
    scope: Annotated[
        list[str],
        typer.Option(
            help="What it may do: generate, embed, classify, explain, metrics, or admin (everything); several times "
            "for several."
        ),
    ],
    expires: Annotated[
        str | None, typer.Option(metavar="SPAN", help="After which it is no good, such as 90d or 12h.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Read and written.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1)] = None,
    file: KeyFile = _FILE,
    json_output: Json = False,
) -> None:
    """Make a key and show it, this once: the file keeps only its hash."""
    from tutti.serve.guard.keyring import Keyring, Quota

    quota = Quota(
        requests_per_minute=requests_per_minute,
        requests_per_day=requests_per_day,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
    )
    ends = None if expires is None else time.time() + _seconds(expires)
    _show(name, Keyring(file).add(name, scope, ends, quota), file, json_output)


@app.command("list")
def list_keys(file: KeyFile = _FILE, json_output: Json = False) -> None:
    """List the keys; none can be shown again."""
    from tutti.serve.guard.keyring import Keyring, as_json

    found = [as_json(key) for key in Keyring(file).keys]
    if json_output:
        print_json({"keys": found})
    elif found:
        print_records(f"keys in {file}", [_row(one) for one in found])
    else:
        typer.echo(f"there are no keys in {file}")


@app.command()
def rotate(
    name: Name,
    keep: Annotated[
        str, typer.Option(metavar="SPAN", help="For which the old key goes on being good; 0s: not at all.")
    ] = "24h",
    file: KeyFile = _FILE,
    json_output: Json = False,
) -> None:
    """Make another key of the same name and rights, and show it; the old one is good for a while."""
    from tutti.serve.guard.keyring import Keyring

    _show(name, Keyring(file).rotate(name, _seconds(keep)), file, json_output)


@app.command()
def revoke(name: Name, file: KeyFile = _FILE, json_output: Json = False) -> None:
    """Take a key away, from the next request on."""
    from tutti.serve.guard.keyring import Keyring

    Keyring(file).revoke(name)
    if json_output:
        print_json({"revoked": name})
    else:
        say(f"key '{name}' is no good any more")


def _show(name: str, key: str, file: Path, json_output: bool) -> None:
    if json_output:
        print_json({"name": name, "key": key, "file": str(file)})
        return
    say(f"key of '{name}', which is shown only now:")
    typer.echo(key)


def _row(key: dict[str, Any]) -> dict[str, str]:
    from tutti.observe import words

    def date(seconds: float | None) -> str:
        return "–" if seconds is None else words.date(seconds)

    quota = [f"{most} {name.replace('_', ' ')}" for name, most in key["quota"].items() if most is not None]
    return {
        "name": key["name"],
        "scopes": ", ".join(key["scopes"]),
        "made": date(key["made"]),
        "expires": date(key["expires"]),
        "old key until": date(key["rotating_until"]),
        "at most": ", ".join(quota) or "–",
    }


def _seconds(span: str) -> float:
    """Raises ConfigError."""
    from tutti.core.errors import ConfigError

    found = _SPAN.fullmatch(span)
    if found is None:
        raise ConfigError(f"{span!r} is no span of time", "write 90d, 12h, 30m or 45s")
    return int(found[1]) * _SECONDS[found[2]]
