"""The figures of a run as rows of words, and what can be done next: the page and the terminal say the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.core import RunDirectory
from tutti.observe import words
from tutti.observe.noise import noise_sentence
from tutti.observe.question import Question


def result_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything that a person wants to know first; what is not known is left out."""

    def get(key: str) -> Any:
        return figures.get(key)

    if not get("steps"):  # nothing was measured
        return [("State", str(get("state")))]
    planned, sent, world = get("steps_planned"), get("bytes_sent"), get("world_size")
    last, best = get("validation_loss"), get("best_validation_loss")
    exported = "exported: " if get("state") == "finished" else ""
    rows: list[tuple[str, str | None]] = [
        ("State", get("state")),
        ("Steps", f"{get('steps') or 0:,}" + (f" of {planned:,}" if planned else "")),
        ("Tokens", _if(get("tokens"), lambda v: f"{v:,}")),
        (
            "Training loss",
            _if(get("train_loss"), lambda v: f"{words.figure(v)} ({get('train_loss_basis')})"),
        ),
        (
            "Validation loss",
            _if(
                last,
                lambda v: words.figure(v) + (f" (best: {words.figure(best)})" if best and best < v else ""),
            ),
        ),
        ("Validation bits per byte", _if(get("validation_bits_per_byte"), words.figure)),
        ("Validation", _if(get("validation_metrics"), words.metrics)),
        ("Best", _if(get("best"), lambda v: f"{words.metrics(v['metrics'])} ({exported}step {v['step']:,})")),
        ("Final test", _if(get("test"), lambda v: words.metrics(v["metrics"]))),
        ("Gradient noise", _if(get("gradient_noise"), noise_sentence)),
        ("Speed", _if(get("tokens_per_second"), lambda v: f"{words.rate(v)} tokens/s")),
        ("MFU", _if(get("mfu"), lambda v: f"{words.percent(v)} ({get('mfu_basis')})")),
        (
            "Goodput",
            _if(get("goodput"), lambda v: f"{words.percent(v)} of the wall time went into steps that count"),
        ),
        ("Wall time", _if(get("wall_seconds"), words.seconds)),
        ("Peak memory", _if(get("peak_memory_bytes"), lambda v: f"{words.size(v)} (the largest worker)")),
        (
            "Sent between replicas",
            _if(
                sent,
                lambda v: (
                    f"{words.size(v)} by {words.plural(int(world), 'worker') if world else 'all workers'}"
                ),
            ),
        ),
        ("Restarts", _if(get("restarts") or None, str)),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _if(value: Any, say: Any) -> str | None:
    return None if value is None else str(say(value))


@dataclass(frozen=True)
class Commands:
    """How this machine calls Tutti, and the words that started the run.

    `program`: what to type for `tutti`. `train`: the whole command that trains this run, without `--resume`.
    """

    program: str
    train: str

    @property
    def resume(self) -> str:
        """The command that goes on from the last checkpoint."""
        return f"{self.train} --resume"

    def resume_to(self, steps: int) -> str:
        """The same, with another number of steps."""
        length = ("train.steps=", "train.epochs=")
        words = [word for word in shlex.split(self.train) if not word.startswith(length)]
        return shlex.join([*words, "--resume", f"train.steps={steps}"])


def next_moves(
    run: Path, figures: Mapping[str, Any], question: Question, commands: Commands
) -> list[tuple[str, str]]:
    """Commands that can be typed now, each with its purpose; the most useful one first.

    `question`: for the model. A run of `tutti.fit` (whose model only the user's own program can make) has none.
    """
    program = commands.program
    state = figures.get("state")
    moves = []
    if state != "finished":
        moves.append((commands.resume, "go on from the last checkpoint"))
    if state == "finished" or figures.get("checkpoints"):
        purpose = "let the model continue a prompt" if question.verb == "generate" else "ask the model"
        moves.append((question.command(program, run), purpose))
        moves.append((f"{program} evaluate {shlex.quote(str(run))}", "measure it on what was kept aside"))
    if state == "finished":
        more = 2 * int(figures.get("steps_planned") or figures.get("steps") or 1)
        moves.append((commands.resume_to(more), "train on, to twice the steps"))
    return moves


def places(run: Path) -> list[tuple[str, Path]]:
    """What lies in the run directory for a reader, where it is there."""
    paths = RunDirectory(run)
    found = [
        ("Loss curve", paths.curve),
        ("Report", paths.report_markdown),
        ("Model", paths.export),
    ]
    return [(name, path) for name, path in found if path.exists()]
