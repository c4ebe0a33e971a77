"""What a run leaves behind for its readers: `report.json`, `report.md` and `loss.png`.

All three come from the event files alone, so they can be written again at any time, by anybody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutti.core import RunDirectory, write_json_atomically, write_text_atomically
from tutti.core.rundir import unwritable
from tutti.observe.curve import draw_curve
from tutti.observe.figures import compute_figures
from tutti.observe.groups import has_groups, summarise_groups
from tutti.observe.history import read_history
from tutti.observe.page import write_page


def summarise(run: Path) -> dict[str, Any]:
    """The figures of the run as they stand now; nothing is written."""
    run = run.absolute()
    if has_groups(run):
        return summarise_groups(run)
    return compute_figures(run, read_history(run))


def write_report(run: Path) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `loss.png` of the run at `run`, each atomically.

    Returns the content of `report.json`.

    Raises:
        RunError: the directory cannot be written.
    """
    run = run.absolute()  # the run's name is the directory's, even for `.`
    paths = RunDirectory(run)
    history = read_history(run)
    figures = compute_figures(run, history)
    try:
        title = f"{run.name}: loss over {figures['steps']:,} steps"
        drawn = draw_curve(history, paths.curve, title, figures["train_loss"])
        write_text_atomically(paths.report_markdown, write_page(run, history, figures, curve=drawn))
        write_json_atomically(paths.report_json, figures)
    except OSError as error:
        raise unwritable(run, error) from error
    return figures
