"""What is wrong now, and what was said of it: once when it begins, once when it is over, and again while it lasts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal["firing", "still", "resolved", "trial"]
#: What comes and goes is one thing, not many: it is over when it has been so long away.
SETTLE_SECONDS = 60.0
#: Chats refuse messages from a few thousand characters on, and programs variables of more than 128 KiB.
_LONGEST_LINE = 1000


@dataclass(frozen=True)
class Finding:
    """Something that is so now. `key` tells it apart from others of the same run; `rule`: which one found it. `once`:
    it is told and never over."""

    key: str
    rule: str
    said: str
    once: bool = False


@dataclass(frozen=True)
class Alert:
    """What receivers are told of `subject`, a run or a service. Times in Unix seconds."""

    subject: str
    key: str
    rule: str
    state: State
    said: str
    since: float
    time: float

    @property
    def line(self) -> str:
        """In one line that every receiver can take: errors may say anything, at any length."""
        head = {"firing": "", "still": "still: ", "resolved": "over: ", "trial": "trial: "}[self.state]
        line = " ".join(f"{self.subject}: {head}{self.said}".replace("\0", " ").split())
        return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"


@dataclass
class _Known:
    finding: Finding
    since: float
    told: float
    seen: float


class Book:
    """What receivers know of `subject`. It is kept in `file`, if there is one, so that nobody is told twice by two
    processes, one after the other. `repeat_seconds`: after these, what still is so is said again."""

    def __init__(self, subject: str, repeat_seconds: float, file: Path | None = None) -> None:
        self._subject, self._repeat, self._file = subject, repeat_seconds, file
        self._known: dict[str, _Known] = {}
        if file is not None and file.is_file():
            for alert in read_alerts(file):
                self._remember(alert)

    def compare(self, findings: Iterable[Finding], now: float) -> list[Alert]:
        """What is to be told of what is so `now`."""
        found = {finding.key: finding for finding in findings}
        alerts = []
        for key, finding in found.items():
            known = self._known.get(key)
            if known is None:
                self._known[key] = known = _Known(finding, now, now, now)
                alerts.append(self._alert("firing", known, now))
            elif not finding.once and now - known.told >= self._repeat:
                known.told = now
                alerts.append(self._alert("still", _Known(finding, known.since, now, now), now))
            known.finding, known.seen = finding, now
        for key, known in list(self._known.items()):
            if key not in found and not known.finding.once and now - known.seen >= SETTLE_SECONDS:
                del self._known[key]
                alerts.append(self._alert("resolved", known, now))
        for alert in alerts:
            self._write(alert)
        return alerts

    def _alert(self, state: State, known: _Known, now: float) -> Alert:
        finding = known.finding
        return Alert(self._subject, finding.key, finding.rule, state, finding.said, known.since, now)

    def _remember(self, alert: Alert) -> None:
        if alert.state == "resolved":
            self._known.pop(alert.key, None)
        elif alert.state != "trial":
            once = alert.rule in ("finished",)
            finding = Finding(alert.key, alert.rule, alert.said, once)
            self._known[alert.key] = _Known(finding, alert.since, alert.time, alert.time)

    def _write(self, alert: Alert) -> None:
        if self._file is None:
            return
        line = json.dumps(asdict(alert), ensure_ascii=False, separators=(",", ":"))
        # On a full disk nothing is remembered, but those who wait for the alert get it.
        with suppress(OSError), self._file.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that a crash tore must not swallow this one
                    file.write(b"\n")
            file.write(line.encode() + b"\n")


def read_alerts(file: Path) -> list[Alert]:
    """What was told, oldest first; lines that cannot be read are left out."""
    found = []
    # Not by splitlines: what is said may hold U+2028.
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found.append(Alert(**json.loads(line)))
        except (ValueError, TypeError):  # torn
            continue
    return found
