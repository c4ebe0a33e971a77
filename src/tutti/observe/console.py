"""The run on the screen: one live bar for all workers together, a picture in a notebook, or else plain lines."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tutti.observe import words
from tutti.observe.notebook import NotebookScreen, in_notebook
from tutti.observe.progress import Progress
from tutti.observe.tail import Tail, when

_POLL_SECONDS = 0.25

#: Without a terminal: about so many progress lines over the run, but at least one each so many seconds.
_PLAIN_LINES = 20
_PLAIN_SECONDS = 30.0
_PLAIN_LEAST_SECONDS = 2.0

_STYLES = {
    "warning": "yellow",
    "stalled": "bold yellow",
    "restart": "yellow",
    "interrupted": "yellow",
    "finished": "bold green",
    "sample_text": "cyan",
    "checkpoint": "dim",
}


def follow(
    run: Path,
    stop: threading.Event,
    *,
    interactive: bool,
    since: float | None = None,
    console: Console | None = None,
) -> None:
    """Show the run at `run` while it goes on, until `stop` is set; meant for a thread of the launcher.

    Events older than `since` (Unix seconds; default: now) belong to an earlier command and are only counted.
    """
    since = time.time() if since is None else since
    screen: NotebookScreen | _Lines
    if console is None and in_notebook():
        screen = NotebookScreen(run, since)
    else:
        console = console or Console(highlight=False, soft_wrap=not interactive)
        screen = _Bar(console) if interactive else _Lines(console)
    tail, progress = Tail(run), Progress()
    with screen:
        while True:
            last = stop.is_set()  # read first: whatever was written before the stop is still shown
            for event in tail.poll():
                lines = progress.take(event)
                if when(event) >= since:
                    screen.say(lines, _STYLES.get(event["kind"], ""))
                    screen.show(progress)
            screen.show(progress)
            if last:
                return
            stop.wait(_POLL_SECONDS)


class _Lines:
    """Plain lines for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_step = 0
        self._shown_time = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, lines: list[str], style: str) -> None:
        for line in lines:
            self._console.print(Text(line))

    def show(self, progress: Progress) -> None:
        step, steps = progress.step, progress.steps
        if step <= self._shown_step:
            self._shown_step = step  # a restart went back
            return
        waited = time.monotonic() - self._shown_time
        due = step - self._shown_step >= steps / _PLAIN_LINES and waited >= _PLAIN_LEAST_SECONDS
        if due or waited >= _PLAIN_SECONDS or step == steps:
            self._console.print(Text(progress.line()))
            self._shown_step, self._shown_time = step, time.monotonic()


class _Bar(_Lines):
    """One live bar; messages are printed above it and stay."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> _Bar:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def say(self, lines: list[str], style: str) -> None:
        for line in lines:
            self._console.print(Text(line, style=style))

    def show(self, progress: Progress) -> None:
        if progress.steps:
            self._live.update(_bar(progress, time.monotonic() - self._began))


def _bar(progress: Progress, elapsed: float) -> Table:
    done = progress.step >= progress.steps
    cells: list[Text | ProgressBar] = [
        ProgressBar(total=progress.steps, completed=progress.step, width=28),
        Text(f"{progress.step:,}/{progress.steps:,}", style="bold"),
    ]
    if progress.loss is not None:
        cells.append(Text(f"loss {progress.loss:.3f}", style="cyan"))
    if progress.bits_per_byte is not None:
        cells.append(Text(f"{progress.bits_per_byte:.3f} bits/byte", style="magenta"))
    if progress.tokens_per_second is not None:
        cells.append(Text(f"{words.rate(progress.tokens_per_second)} tokens/s", style="green"))
    left = f"{words.clock(elapsed)}" if done else f"{words.clock(progress.eta_seconds)} left"
    cells.append(Text(left, style="yellow"))
    grid = Table.grid(padding=(0, 2))
    grid.add_row(*cells)
    return grid
