"""How every verb answers: one JSON object on stdout with `--json`, tables for people otherwise."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on stdout.")]


def say(message: str) -> None:
    """Progress in words: on stderr, so that stdout holds nothing but the answer."""
    typer.echo(message, err=True)


def plain(value: Any) -> Any:
    """`value` as JSON has it: paths and unknown objects as text, NaN and infinity as text as well."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return plain(value.item())
    return str(value)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def only_the_answer(json_output: bool) -> Iterator[None]:
    """While the verb works, whatever a library prints on stdout goes to stderr when JSON is asked for."""
    if not json_output:
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        try:
            real = os.dup(1)
        except OSError:  # there is no stdout at all
            yield
            return
        try:
            os.dup2(2, 1)  # child processes too
            yield
        finally:
            os.dup2(real, 1)
            os.close(real)


def human(value: Any, key: str = "") -> str:
    """A figure as people read it; `key` may name the unit (`…_bytes`, `…_seconds`, `…flops`)."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and "bytes" in key:
        return _scaled(float(value), ("B", "kB", "MB", "GB", "TB", "PB"))
    if isinstance(value, int | float) and ("flops" in key or "flop_s" in key):
        return _scaled(float(value), ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"))
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {human(item, str(name))}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(human(item, key) for item in value) or "–"
    return str(value)


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 1000 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.4g} {units[step]}"


def print_pairs(title: str, pairs: Mapping[str, Any]) -> None:
    """A table of two columns: name, value."""
    print_rows(title, ["", " "], ([name, human(value, name)] for name, value in pairs.items()))


def print_nested(title: str, values: Mapping[str, Any]) -> None:
    """Single figures in one table, then a table for each mapping or list of mappings among `values`."""
    loose = {key: value for key, value in values.items() if not _is_table(value)}
    if loose:
        print_pairs(title, loose)
    for key, value in values.items():
        if not _is_table(value):
            continue
        name = key.replace("_", " ")
        if isinstance(value, list):
            print_records(name, value)
        elif all(isinstance(item, Mapping) for item in value.values()):
            columns = list(dict.fromkeys(str(column) for item in value.values() for column in item))
            rows = (
                [str(row), *(human(item.get(column), f"{column} {row} {key}") for column in columns)]
                for row, item in value.items()
            )
            print_rows(name, ["", *columns], rows)
        else:
            print_pairs(name, value)


def _is_table(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)


def print_records(title: str, records: list[Mapping[str, Any]]) -> None:
    """A table with a row for each record and a column for each key that any of them has."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    print_rows(title, columns, ([human(record.get(key), key) for key in columns] for record in records))


def print_rows(title: str, columns: list[str], rows: Iterable[list[str]]) -> None:
    """A table of texts on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if title:
        console.print(Text(title, style="bold"))
    table = Table()
    table.show_header = any(column.strip() for column in columns)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """A run by its path, or by its name in `runs`; where there is neither, the one that was probably meant."""
    if exists(Path(run)):
        return Path(run)
    return runs / run if exists(runs / run) or os.sep not in run else Path(run)


def exists(path: Path) -> bool:
    """Whether there is something at `path`; no for what cannot even be a path (too long a name)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
