"""Runs side by side as a picture, and as a page that holds it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutti.core.files import write_bytes_atomically
from tutti.core.rundir import unwritable
from tutti.observe.arms import Arm
from tutti.observe.curve import scale_losses, smoothed, style
from tutti.observe.history import History
from tutti.observe.tail import number

if TYPE_CHECKING:  # as in `curve`
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, which people who see few colours tell apart; and lines that nobody needs colours for.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_LINES = ("-", "--", "-.", ":")

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.55 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; height: auto; background: white }
table { border-collapse: collapse; margin: .5rem 0 2rem; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #8886; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
"""


def draw_comparison(arms: Sequence[Arm], histories: Sequence[History]) -> bytes:
    """Losses over steps as PNG: of each arm the smoothed training loss of every run, and the validations, marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The Figure class itself, not pyplot: no global state, no display, safe in any thread.
    figure = Figure(figsize=(10, 5.5), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown: list[float] = []
    for place, arm in enumerate(arms):
        colour, line = _COLOURS[place % len(_COLOURS)], _LINES[place % len(_LINES)]
        for run in arm.runs:
            label = arm.name if run == arm.runs[0] else ""
            shown += _draw(axes, histories[run], colour, line, label)
    if shown:
        scale_losses(axes, min(shown) / 1.03 if min(shown) > 0 else min(shown), max(shown))
        axes.set_xlim(left=0)
        style(figure, "loss: training, smoothed; validation, marked")
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _draw(axes: Axes, history: History, colour: str, line: str, label: str) -> list[float]:
    """Draws one run; the values that should be seen."""
    steps = [step for step in history.steps if math.isfinite(step.loss)]
    losses = smoothed([step.loss for step in steps])
    if steps:
        axes.plot([s.step for s in steps], losses, color=colour, linestyle=line, linewidth=1.4, label=label)
    points = [
        (int(event.get("step") or 0), loss)
        for event in history.validations
        if (loss := number(event.get("loss"))) is not None and math.isfinite(loss)
    ]
    if points:
        label = "" if steps else label
        axes.plot(
            *zip(*points, strict=True), color=colour, linestyle="none", marker="o", markersize=5, label=label
        )
    # How it begins is the same for most, and would leave no room for how it ends.
    return [*losses[len(losses) // 50 :], *(loss for _, loss in points)]


def write_comparison(compared: Mapping[str, Any], picture: bytes) -> str:
    """The page in HTML, with nothing that is fetched from elsewhere; `compared`: see `compare_runs`."""
    runs = compared["runs"]
    title = " · ".join(runs)
    told = [escape(one["sentence"]) for one in compared["differences"]]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p><img alt="Losses of {escape(title)} over their steps; the figures stand below" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"></p>',
        "<h2>Differences</h2>",
        f"<ul>{''.join(f'<li>{line}</li>' for line in told)}</ul>"
        if told
        else "<p>All runs are one arm.</p>",
        "<h2>Settings that differ</h2>",
        _table(["", *runs], ([key, *values] for key, values in compared["config"].items())),
        "<h2>Figures</h2>",
        _table(["", *runs], ([key, *values] for key, values in compared["figures"].items())),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>{"".join(map(_cell, values))}</tr>'
        for name, *values in rows
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{'–' if value is None else escape(str(value))}</td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return f'<td class="number">{shown}</td>'


def write_files(compared: Mapping[str, Any], picture: bytes, png: Path | None, html: Path | None) -> None:
    """What is asked for; each is there whole, or as it was."""
    for path, content in ((png, picture), (html, write_comparison(compared, picture).encode())):
        if path is not None:
            try:
                write_bytes_atomically(path, content)
            except OSError as error:
                raise unwritable(path, error) from error
