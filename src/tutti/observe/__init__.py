"""Readers of events: they look at a run directory and never reach into the training loop."""

from tutti.observe.console import follow
from tutti.observe.curve import draw_curve
from tutti.observe.ending import print_ending
from tutti.observe.errors import summarise_errors
from tutti.observe.groups import print_groups_ending, write_groups_report
from tutti.observe.report import summarise, write_report
from tutti.observe.result import Commands
from tutti.observe.runs import compare_runs, list_runs, show_run
from tutti.observe.trackers import Trackers, check_trackers
from tutti.observe.watch import Stall, Watchdog

__all__ = [
    "Commands",
    "Stall",
    "Trackers",
    "Watchdog",
    "check_trackers",
    "compare_runs",
    "draw_curve",
    "follow",
    "list_runs",
    "print_ending",
    "print_groups_ending",
    "show_run",
    "summarise",
    "summarise_errors",
    "write_groups_report",
    "write_report",
]
