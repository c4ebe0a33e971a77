"""The run in a notebook: one output under the cell, with the loss curve, which is drawn anew while the run goes on."""

from __future__ import annotations

import base64
import html
import io
import sys
import time
from pathlib import Path
from typing import Any

from tutti.observe.curve import curve_of
from tutti.observe.growing import GrowingHistory
from tutti.observe.page import read_config
from tutti.observe.progress import Progress
from tutti.observe.tail import when

#: Seconds between two pictures; on a slow machine so many times what one takes, which leaves the cores to the run.
_DRAW_SECONDS, _DRAW_SHARE = 2.0, 20.0
#: Seconds between two updates of the rest: each carries the picture over the notebook's connection.
_SHOW_SECONDS = 1.0
_DOTS_PER_INCH = 80

_TEXT = "font-family:monospace;white-space:pre-wrap;flex:none"
#: Scrolled to its end, where the news is.
_NEWS = "display:flex;flex-direction:column-reverse;max-height:16em;overflow:auto"
_BAR = "width:24em;vertical-align:middle"
#: What a line begins with that says why something is as it is: many, and read once.
_CHOSEN = "chosen: "


def in_notebook() -> bool:
    """Whether a notebook shows what this process does: Jupyter, VS Code, Colab; not IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookScreen:
    """What `follow` shows the run at `run` on. Events before `since` (Unix seconds) are of an earlier command."""

    def __init__(self, run: Path, since: float) -> None:
        self._run, self._since = run.absolute(), since
        self._growing = GrowingHistory(run)
        self._lines: list[str] = []
        self._progress = Progress()
        self._picture = b""
        self._draw_at = self._show_at = 0.0
        self._shown = ""
        self._handle: Any = None

    def __enter__(self) -> NotebookScreen:
        return self

    def __exit__(self, *exception: object) -> None:
        self._growing.refresh(at_once=True)
        if any(when(event) >= self._since for event in self._growing.history.of("interrupted")):
            own = read_config(self._run).get("model", {}).get("python")
            call = "tutti.fit(…, resume=True)" if own else "tutti.train(config, resume=True)"
            self._lines.append(f"to go on: {call}")
        self._draw()
        self._publish()

    def say(self, lines: list[str], style: str) -> None:
        """Add `lines`; the newest are seen."""
        self._lines += lines

    def show(self, progress: Progress) -> None:
        """Bring the output to what `progress` says now."""
        self._progress = progress
        if time.monotonic() >= self._draw_at:
            self._growing.refresh()
            self._draw()
        if time.monotonic() >= self._show_at:
            self._publish()
            self._show_at = time.monotonic() + _SHOW_SECONDS

    def _draw(self) -> None:
        began = time.monotonic()
        figure = curve_of(self._growing.history, f"{self._run.name}: loss")
        if figure is not None:
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=_DOTS_PER_INCH)
            self._picture = picture.getvalue()
        now = time.monotonic()
        self._draw_at = now + max(_DRAW_SECONDS, _DRAW_SHARE * (now - began))

    def _publish(self) -> None:
        page = self._page()
        if page == self._shown:
            return
        from IPython.display import display

        plain = "\n".join([*self._lines, self._progress.line()])
        content = {"text/plain": plain, "text/html": page}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(content, raw=True)
        self._shown = page

    def _page(self) -> str:
        progress = self._progress
        chosen = [line.removeprefix(_CHOSEN) for line in self._lines if line.startswith(_CHOSEN)]
        news = [line for line in self._lines if not line.startswith(_CHOSEN)]
        parts = []
        if chosen:
            parts.append(f"<details><summary>what was chosen, and why</summary>{_text(chosen)}</details>")
        if progress.steps:
            parts.append(
                f'<div><progress style="{_BAR}" max="{progress.steps}" value="{progress.step}"></progress> '
                f"<code>{html.escape(progress.line())}</code></div>"
            )
        if self._picture:
            data = base64.b64encode(self._picture).decode()
            parts.append(f'<img alt="Loss over steps" src="data:image/png;base64,{data}">')
        parts.append(f'<div style="{_NEWS}">{_text(news)}</div>')
        return "".join(parts)


def _text(lines: list[str]) -> str:
    return f'<div style="{_TEXT}">{html.escape(chr(10).join(lines))}</div>'
