"""What the page of one run shows, by part: the reader sends on what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory
from tutti.observe import words
from tutti.observe.alerts.run_rules import RunRules, judge_run
from tutti.observe.dashboard.rows import Rows, columns_of
from tutti.observe.errors import summarise_errors
from tutti.observe.figures import compute_figures, finite, given_up
from tutti.observe.growing import GrowingHistory
from tutti.observe.happened import told_of
from tutti.observe.page import last_samples, moves_of, read_config
from tutti.observe.skew import ranks_of
from tutti.observe.tail import when
from tutti.observe.watch import read_signs

#: What is told of a run that happened, newest first.
_MOST_TOLD = 100
#: Two pages of one run look at its files together, and what takes long is done for so small a share of the time.
_FRESH_SECONDS = 0.4
_LOOKING_SHARE = 0.1


class RunPage:
    """Of the run at `run`; may be asked by several threads."""

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self._growing = GrowingHistory(run)
        self._rows = Rows()
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._parts: dict[str, Any] = {}

    def look(self, revision: int) -> tuple[dict[str, Any], int]:
        """All parts as they are now, with rows that changed after `revision`; the revision that they are of."""
        with self._lock:
            began = time.monotonic()
            if began >= self._look_at:
                self._growing.refresh()
                self._rows.update(self._growing)
                self._parts = self._make_parts()
                took = time.monotonic() - began
                self._look_at = began + max(_FRESH_SECONDS, took / _LOOKING_SHARE)
            rows = self._rows
            first = rows.changed_since(revision)
            sent = {"from": first, "width": rows.width, "columns": columns_of(rows.rows[first:])}
            unchanged = revision == rows.revision
            return self._parts | ({} if unchanged else {"rows": sent}), rows.revision

    def _make_parts(self) -> dict[str, Any]:
        history, progress = self._growing.history, self._growing.progress
        figures = compute_figures(self.run, history)
        config = read_config(self.run)
        state = figures["state"]
        saves = history.of("checkpoint")
        rules = RunRules.of(config.get("alerts") or {})
        findings = judge_run(self.run, history, rules, time.time())
        return {
            "run": {
                "name": self.name,
                "path": str(self.run),
                "state": state,
                "step": progress.step if state == "running" else figures["steps"],
                "steps": figures["steps_planned"],
                "loss": finite(progress.loss),
                "train_loss": figures["train_loss"],
                "tokens": figures["tokens"],
                "tokens_per_second": progress.tokens_per_second
                if state == "running"
                else figures["tokens_per_second"],
                "eta_seconds": progress.eta_seconds if state == "running" else None,
                "validation_loss": figures["validation_loss"],
                "best_validation_loss": figures["best_validation_loss"],
                "bits_per_byte": figures["validation_bits_per_byte"],
                "metrics": figures["validation_metrics"],
                "mfu": figures["mfu"],
                "goodput": figures["goodput"],
                "wall_seconds": figures["wall_seconds"],
                "peak_memory_bytes": figures["peak_memory_bytes"],
                "bytes_sent": figures["bytes_sent"],
                "restarts": figures["restarts"],
                "steps_repeated": figures["steps_repeated"],
                "started": history.first_time or None,
                "last_event": history.last_time or None,
                "checkpoint": {"step": saves[-1].get("step"), "time": when(saves[-1])} if saves else None,
                "facts": _facts(figures),
            },
            "ending": ending_of(self.run, figures, self._growing, config),
            "alerts": [  # how it ended is said beside
                {"rule": one.rule, "said": one.said}
                for one in findings
                if one.rule not in ("ended", "finished")
            ],
            "ranks": ranks_of(history, read_signs(self.run)),
            "memory": [
                {"time": when(e), "rank": e.get("rank"), "bytes": e.get("peak_memory_bytes")}
                for e in history.of("memory")[-200:]
            ],
            "validations": [
                {
                    "step": e.get("step"),
                    "loss": finite(e.get("loss")),
                    "bits_per_byte": finite(e.get("bits_per_byte")),
                    "metrics": {name: finite(value) for name, value in (e.get("metrics") or {}).items()},
                }
                for e in history.validations[-_MOST_TOLD * 5 :]
            ],
            "happened": told_of(history)[-_MOST_TOLD:][::-1],
            "samples": last_samples(history.of("sample_text")),
            "choices": figures["choices"],
        }


def _facts(figures: Mapping[str, Any]) -> str:
    """What was trained with what, in a line."""
    world = figures["world_size"]
    if not world:
        return ""
    facts = [
        f"{words.count(figures['parameters'])} parameters" if figures["parameters"] else "",
        words.workers(int(world), figures["replicas"], figures["layout"], str(figures["policy"])),
        str(figures["precision"] or ""),
    ]
    return " · ".join(fact for fact in facts if fact)


def ending_of(
    run: Path, figures: Mapping[str, Any], growing: GrowingHistory, config: dict[str, Any]
) -> dict[str, Any] | None:
    """How a run that goes on no more has ended, and what can be typed next; None: it goes on."""
    state, history = figures["state"], growing.history
    if state == "running":
        return None
    said = ""
    if state == "failed":
        reason = given_up(history)
        said = summarise_errors(run, history.begun) or (f"It failed; {reason}." if reason else "It failed.")
    elif state == "interrupted" and not any(when(e) >= history.begun for e in history.of("interrupted")):
        saves = history.of("checkpoint")
        kept = f"the checkpoint of step {int(saves[-1].get('step') or 0):,}" if saves else "no checkpoint"
        said = (
            "It stopped without a word: its processes were killed, or the machine went away. "
            f"There is {kept} to go on from."
        )
        if not history.first_time:
            said = "Nothing has been written yet, or the run was killed before it began."
    elif state == "interrupted":
        killed = any(e.get("killed") and when(e) >= history.begun for e in history.of("interrupted"))
        lost = "It was stopped at once; what came after the last checkpoint is done again."
        said = lost if killed else "It was interrupted; everything is saved."
    moves = [] if (config.get("model") or {}).get("python") else moves_of(run, figures, config)
    return {
        "state": state,
        "said": said,
        "moves": [{"command": command, "purpose": purpose} for command, purpose in moves],
        "export": str(RunDirectory(run).export) if RunDirectory(run).export.is_dir() else None,
    }
