"""One run's model, made smaller by several recipes, measured beside itself; the best that meets the target is kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutti.compress.make import Candidate, Maker
from tutti.compress.recipes import BEFORE, DEFAULT, REFERENCE, Recipe, ladder
from tutti.compress.subject import Subject
from tutti.compress.table import Line, as_markdown
from tutti.compress.target import Target
from tutti.compress.timing import time_packages
from tutti.core import ModelError, RunError, write_json_atomically, write_text_atomically
from tutti.models import find_blocks
from tutti.package import is_package, package_bytes

Say = Callable[[str], None]
#: Rows that are timed one by one.
_TIMED = 32


def compress(
    run: Path,
    *,
    recipes: Sequence[str] = (),
    target: str = "<1% worse",
    destination: Path | None = None,
    recovery_steps: int | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Make the model of `run` smaller by each of `recipes` and keep the fastest that is good enough.

    Without recipes usual ones are tried, and while none meets the target smaller models, which have to learn again:
    `recovery_steps` steps, or as many as the run had. What is kept lies in `destination` (default: `compressed/` of
    the run), the table in `compression.md` and `compression.json` of the run, whatever came of it. Returns what the
    latter holds.

    Raises:
        TuttiError: there is nothing to make smaller, a recipe or the target is not understood, or no recipe meets
            the target: nothing is kept then.
    """
    wanted, aim = [Recipe.of(text) for text in dict.fromkeys(recipes or DEFAULT)], Target.of(target)
    subject = Subject.of(run)
    destination = destination or run / "compressed"
    _refuse_to_replace(destination)
    with tempfile.TemporaryDirectory(prefix=".compress-", dir=run) as folder:
        maker = Maker(subject, Path(folder), recovery_steps, console=say is not None)
        session = Session(maker, aim, say or _silent, wanted={recipe.name for recipe in wanted})
        session.carry_out([BEFORE, REFERENCE, *wanted], optional=not recipes)
        if not recipes:
            for text in ladder(len(find_blocks(subject.model))):
                if session.kept is not None:
                    break
                session.say(f"none meets the target yet ({aim}); the next one has to learn again")
                session.wanted.add(text)
                session.carry_out([Recipe.of(text)], optional=True)
        report, kept = session.report(run, destination), session.kept
        table = as_markdown(report)
        write_json_atomically(run / "compression.json", report)
        write_text_atomically(run / "compression.md", table)
        if kept is None:
            raise RunError(
                "no recipe meets the target; nothing is kept\n" + "\n".join(session.falling_short()),
                f"ask for less, or try other recipes; the table is in {run / 'compression.md'}",
            )
        _publish(session.directory_of(kept), destination, table)
    return report


@dataclass
class Session:
    """What was made so far, and how it measures. The first is the model as it was. `wanted`: those that may be kept."""

    maker: Maker
    aim: Target
    say: Say
    made: list[Candidate] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)

    def carry_out(self, recipes: Sequence[Recipe], *, optional: bool) -> None:
        """Make and measure `recipes`, all of them anew, so that all are timed in turn. `optional`: one that this model
        or machine does not allow is left out; onnx as the reference always is."""
        for recipe in recipes:
            if any(one.recipe.name == recipe.name for one in self.made):
                continue
            self.say(f"making {recipe.name}")
            try:
                self.made.append(self.maker.make(recipe))
            except ModelError as error:
                if not optional and recipe is not REFERENCE:
                    raise
                self.say(f"left out {recipe.name}: {error.problem}")
        self.say("measuring how fast they answer")
        timings = time_packages([one.directory for one in self.made], self.maker.subject.rows(_TIMED))
        self.lines = [
            Line(one.recipe.name, one.quality, package_bytes(one.directory), timing)
            for one, timing in zip(self.made, timings, strict=True)
        ]

    @property
    def kept(self) -> Line | None:
        """The fastest at batch 1 that meets the target."""
        before, metric = self.lines[0], self.maker.subject.metric
        good = [line for line in self.lines[1:] if not self.aim.missed(*line.against(before, metric))]
        return min(
            (line for line in good if line.recipe in self.wanted),
            key=lambda line: line.timing.one,
            default=None,
        )

    def directory_of(self, line: Line) -> Path:
        """Where the model of `line` is."""
        return next(one.directory for one in self.made if one.recipe.name == line.recipe)

    def falling_short(self) -> list[str]:
        """Of each recipe, what it misses."""
        before, metric = self.lines[0], self.maker.subject.metric
        return [
            f"  {line.recipe}: {'; '.join(self.aim.missed(*line.against(before, metric)))}"
            for line in self.lines[1:]
        ]

    def report(self, run: Path, destination: Path) -> dict[str, Any]:
        """What `compression.json` holds."""
        kept, subject = self.kept, self.maker.subject
        return {
            "run": str(run),
            "metric": subject.metric,
            "part": "validation",
            "examples": subject.job.prepared.parts["validation"].examples,
            "target": str(self.aim),
            "kept": None if kept is None else kept.recipe,
            "directory": None if kept is None else str(destination),
            "lines": [line.as_json(self.lines[0], subject.metric) for line in self.lines],
        }


def _refuse_to_replace(destination: Path) -> None:
    """Before anything is made: only what `compress` wrote is replaced."""
    if destination.exists() and not is_package(destination):
        raise RunError(
            f"{destination} exists and is no compressed model", "choose a directory that is not there yet"
        )


def _publish(made: Path, destination: Path, table: str) -> None:
    (made / "README.md").write_text(table, encoding="utf-8")
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(destination, ignore_errors=True)
    shutil.move(made, destination)


def _silent(_message: str) -> None:
    pass
