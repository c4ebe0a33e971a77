"""The last screen of a run: what came out, where it lies, and what can be typed next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutti.observe.page import read_config
from tutti.observe.question import first_question
from tutti.observe.result import Commands, next_moves, places, result_rows

_STATE_STYLES = {"finished": "bold green", "interrupted": "bold yellow", "failed": "bold red"}


def print_ending(
    run: Path, figures: Mapping[str, Any], commands: Commands, console: Console | None = None
) -> None:
    """Print figures (those of `report.json`) of the run at `run`, its files, and commands that work as printed."""
    console = console or Console(highlight=False)
    console.print()
    console.print(_table(run, figures))
    _print_pairs(console, [(name, str(path)) for name, path in places(run)])
    moves = next_moves(run, figures, first_question(read_config(run)), commands)
    if figures.get("state") == "interrupted":
        console.print()
        console.print(Text("resume with:"))
        console.print(Text(f"  {commands.resume}", style="bold"), soft_wrap=True)
        moves = moves[1:]
    if moves:
        console.print()
        console.print(Text("next:"))
        width = min(60, max(len(command) for command, _ in moves))
        for command, purpose in moves:
            line = (
                Text("  ").append(f"{command:<{width}}", style="bold").append(f"   # {purpose}", style="dim")
            )
            console.print(line, soft_wrap=True)  # a command must be one line, to be copied


def _table(run: Path, figures: Mapping[str, Any]) -> Table:
    table = Table(title=Text(f"run {run.name}", style="bold"), title_justify="left", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in result_rows(figures):
        style = _STATE_STYLES.get(value, "") if name == "State" else ""
        table.add_row(Text(name), Text(value, style=style))
    return table


def _print_pairs(console: Console, pairs: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        console.print(Text(f"{name:<{width}}  ", style="dim").append(value, style="not dim"), soft_wrap=True)
