"""What a search has found so far: `search.json`, `search.md` and `best.yaml`, written anew after every trial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.config import Config, Dimension, Plain, dump_changes, show_setting, with_settings
from tutti.core.files import write_json_atomically, write_text_atomically
from tutti.core.rundir import unwritable
from tutti.observe import words
from tutti.observe.page import markdown_table
from tutti.search.directory import SearchDirectory
from tutti.search.goal import Goal
from tutti.search.study import Record, Study


@dataclass(frozen=True)
class Outcome:
    """`config`: of the user, without what is searched; `reasons`: why a key is, where the user did not say it."""

    place: SearchDirectory
    config: Config
    goal: Goal
    space: Sequence[Dimension]
    reasons: dict[str, str]

    def best(self, records: Sequence[Record]) -> Record | None:
        """The best that came to its end, the first of equals."""
        best: Record | None = None
        for record in records:
            if record.state == "complete" and (best is None or self.goal.better(record.value, best.value)):
                best = record
        return best

    def write(self, study: Study, planned: int, state: str) -> dict[str, Any]:
        """Write all three; returns what `search.json` holds. `state`: `running`, `finished`, `interrupted`, `failed`.

        Raises:
            RunError: the directory cannot be written.
        """
        records = study.records()
        best = self.best(records)
        report = {
            "name": self.config.name,
            "directory": str(self.place.path),
            "state": state,
            "goal": self.goal.name,
            "larger_is_better": self.goal.larger,
            "trials_planned": planned,
            "seed": self.config.train.seed,
            "space": {
                one.key: {"values": one.as_setting(), "reason": self.reasons.get(one.key)}
                for one in self.space
            },
            "best": None if best is None else self._line(best, state),
            "importances": study.importances(),
            "trials": [self._line(record, state) for record in records],
        }
        try:
            if best is not None:
                write_text_atomically(self.place.best, self._best_config(best, len(records)))
            write_text_atomically(self.place.report_markdown, _page(report))
            write_json_atomically(self.place.report_json, report)
        except OSError as error:
            raise unwritable(self.place.path, error) from error
        return report

    def _line(self, record: Record, state: str) -> dict[str, Any]:
        """`state`: of the search; while it rests, no trial runs."""
        run = self.place.trial(record.number).path
        left = record.state == "running" and state != "running"
        return {
            "trial": record.number,
            "state": "interrupted" if left else record.state,
            "value": record.value,
            "settings": record.settings,
            **{key: record.notes.get(key) for key in ("reason", "step", "seconds")},
            "run": str(run) if run.is_dir() else None,
        }

    def _best_config(self, best: Record, trials: int) -> str:
        config = with_settings(self.config, best.settings)
        found = f"{self.goal.name} {words.figure(best.value)} in trial {best.number} of {trials}"
        return f"# {time.strftime('%Y-%m-%d')}: {found}, found by tutti tune.\n{dump_changes(config)}"


def ranked(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials of a report, best first; those that were pruned after those that came to their end, then the rest."""
    sign = -1.0 if report["larger_is_better"] else 1.0
    places = ("complete", "pruned", "running", "interrupted", "failed")

    def order(line: dict[str, Any]) -> tuple[int, float, int]:
        return (places.index(line["state"]), sign * (line["value"] or 0.0), line["trial"])

    return sorted(report["trials"], key=order)


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows for people: trials, best first, with their settings (called by the last part of their keys)."""
    keys = list(report["space"])
    lasts = [key.rpartition(".")[2] for key in keys]
    names = [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]
    rows = [
        [
            str(line["trial"]),
            line["state"],
            words.figure(line["value"]),
            f"{line['step']:,}" if line["step"] else "–",
            words.seconds(line["seconds"]),
            *(show_setting(line["settings"][key]) if key in line["settings"] else "–" for key in keys),
        ]
        for line in ranked(report)
    ]
    return ["trial", "state", report["goal"], "steps", "took", *names], rows


def as_words(settings: dict[str, Plain]) -> str:
    """Settings as they can be typed."""
    return " ".join(f"{key}={show_setting(value)}" for key, value in settings.items())


def _page(report: dict[str, Any]) -> str:
    best, failed = report["best"], [line for line in report["trials"] if line["reason"]]
    directory = Path(report["directory"])
    parts = [f"# {directory.name}"]
    counts = {
        state: sum(line["state"] == state for line in report["trials"]) for state in ("complete", "pruned")
    }
    parts.append(
        f"{len(report['trials'])} of {words.plural(report['trials_planned'], 'trial')}, {counts['complete']} to their "
        f"end, {counts['pruned']} pruned, {len(failed)} failed; seed {report['seed']}. "
        f"{'Larger' if report['larger_is_better'] else 'Smaller'} {report['goal']} is better."
    )
    if best is not None:
        parts.append(
            f"**Best: {report['goal']} {words.figure(best['value'])}** in trial {best['trial']} "
            f"(`{best['run']}`): `{as_words(best['settings'])}`"
        )
        parts.append(f"```sh\ntutti train {directory / 'best.yaml'}\n```")
    head, rows = table(report)
    parts.append(f"## Trials\n\n{markdown_table(head, rows, 'rl' + 'r' * (len(head) - 2))}")
    if report["importances"]:
        shares = [(f"`{key}`", words.percent(share)) for key, share in report["importances"].items()]
        parts.append(
            "## Which settings mattered\n\nShares of what made the difference among trials that came to their end "
            f"(PED-ANOVA):\n\n{markdown_table(('', ''), shares, 'lr')}"
        )
    if failed:
        lines = "\n".join(f"- trial {line['trial']}: {line['reason']}" for line in failed)
        parts.append(f"## What failed\n\n{lines}")
    return "\n\n".join(parts) + "\n"
