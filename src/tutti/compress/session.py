"""One run's model, made smaller by several recipes, measured beside itself; the best that meets the target is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutti.compress.asked import AskedSubject
from tutti.compress.make import Candidate, Maker
from tutti.compress.parts import check_parts
from tutti.compress.recipes import BEFORE, Recipe
from tutti.compress.subject import Subject
from tutti.compress.table import Line, as_markdown
from tutti.compress.target import Target
from tutti.compress.timing import Timing, time_packages
from tutti.compress.workshop import workshop, writing
from tutti.compress.writer import WriterSubject
from tutti.core import RunError, TuttiError, write_json_atomically, write_text_atomically
from tutti.models import find_blocks
from tutti.package import package_bytes, publish_package, refuse_to_replace
from tutti.trained import load_trained

Say = Callable[[str], None]


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
            the target: nothing is kept then. Or one of `recipes` could not be carried out: of the others there is the
            table, and the best is kept.
    """
    named, aim = [Recipe.of(text) for text in dict.fromkeys(recipes)], Target.of(target)
    subject = _subject_of(run)
    for recipe in named:
        subject.check(recipe)
    wanted = named or [Recipe.of(text) for text in subject.usual]
    reference = [] if subject.reference is None else [subject.reference]
    destination = destination or run / "compressed"
    refuse_to_replace(destination)
    with workshop(run) as folder:
        maker = Maker(subject, folder, recovery_steps, console=say is not None)
        session = Session(
            maker,
            aim,
            say or _silent,
            wanted={recipe.name for recipe in wanted},
            named={recipe.name for recipe in named},
        )
        try:
            session.carry_out([BEFORE, *reference, *wanted])
            if not recipes:
                session.wanted.update(recipe.name for recipe in reference)
                session.climb()
        finally:
            report = session.write(run, destination)
        if session.kept is None:
            old = f"; {destination} is of another time" if destination.exists() else ""
            raise RunError(
                "no recipe meets the target; nothing is kept\n" + "\n".join(session.falling_short()),
                f"ask for less, or try other recipes; the table is in {run / 'compression.md'}{old}",
            )
        made = session.directory_of(session.kept)
        with writing(run):
            (made / "README.md").write_text(as_markdown(report, subject.words), encoding="utf-8")
        publish_package(made, destination)
        if failures := session.failures:
            raise RunError(
                f"not all recipes could be carried out; {session.kept.recipe}, the best of the others, is kept in "
                f"{destination}\n"
                + "\n".join(f"  {name}: {error.problem}" for name, error in failures.items()),
                f"{next(iter(failures.values())).hint}; the table is in {run / 'compression.md'}",
            )
    return report


@dataclass
class Session:
    """What was made so far, and how it measures. The first is the model as it was. `wanted`: those that may be kept;
    `named`: of them those that the user asked for; `left_out`: what this model or machine does not allow, and why."""

    maker: Maker
    aim: Target
    say: Say
    made: list[Candidate] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    wanted: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    left_out: dict[str, TuttiError] = field(default_factory=dict)

    def carry_out(self, recipes: Sequence[Recipe]) -> None:
        """Make and measure `recipes`, all of them anew, so that all are timed in turn.

        Raises:
            TuttiError: the model as it was cannot be measured, or none of those that the user named can be made.
        """
        for recipe in recipes:
            if recipe.name in self.left_out or any(one.recipe.name == recipe.name for one in self.made):
                continue
            self.say(f"making {recipe.name}")
            try:
                self.made.append(self.maker.make(recipe))
            except TuttiError as error:
                self._leave_out(recipe, error)
        if self.named and self.named <= self.left_out.keys():
            raise next(iter(self.failures.values()))
        self.say("measuring how fast they answer")
        timings = time_packages([one.directory for one in self.made], self.maker.subject.drill())
        lines = []
        for one, timing in zip(tuple(self.made), timings, strict=True):
            if isinstance(timing, Timing):
                lines.append(Line(one.recipe.name, one.quality, package_bytes(one.directory), timing))
            else:
                self._leave_out(one.recipe, timing)
                self.made.remove(one)
        self.lines = lines

    def _leave_out(self, recipe: Recipe, error: TuttiError) -> None:
        if recipe is BEFORE:
            raise error
        self.left_out[recipe.name] = error
        self.say(f"left out {recipe.name}: {error}")

    @property
    def failures(self) -> dict[str, TuttiError]:
        """What the user asked for and is left out."""
        return {name: error for name, error in self.left_out.items() if name in self.named}

    def climb(self) -> None:
        """While nothing meets the target, try what has to learn again, one after the other."""
        subject = self.maker.subject
        for text in subject.ladder(len(find_blocks(subject.model)), [one.recipe.name for one in self.made]):
            if self.kept is not None:
                return
            self.say(f"none meets the target yet ({self.aim}); the next one has to learn again")
            self.wanted.add(text)
            self.carry_out([Recipe.of(text)])

    @property
    def kept(self) -> Line | None:
        """The fastest at batch 1 that meets the target."""
        if not self.lines:
            return None
        before, metric = self.lines[0], self.maker.subject.metric
        good = [line for line in self.lines if not self.aim.missed(*line.against(before, metric))]
        return min(
            (line for line in good if line.recipe in self.wanted),
            key=lambda line: line.timing.one,
            default=None,
        )

    def directory_of(self, line: Line) -> Path:
        """Where the model of `line` is."""
        return next(one.directory for one in self.made if one.recipe.name == line.recipe)

    def falling_short(self) -> list[str]:
        """Of each recipe, what it misses; of those that the user asked for in vain, why."""
        before, metric = self.lines[0], self.maker.subject.metric
        return [
            f"  {line.recipe}: {'; '.join(missed)}"
            for line in self.lines
            if line.recipe in self.wanted and (missed := self.aim.missed(*line.against(before, metric)))
        ] + [f"  {name}: {error.problem}" for name, error in self.failures.items()]

    def write(self, run: Path, destination: Path) -> dict[str, Any]:
        """Write what was measured to `run`, if anything was; returns what `compression.json` holds."""
        kept, subject = self.kept, self.maker.subject
        examples, judged = subject.judged
        report = {
            "run": str(run),
            "task": subject.config.task.kind,
            "metric": subject.metric.name,
            "larger_is_better": subject.metric.larger_is_better,
            "part": "validation",
            "examples": examples,
            "judged": judged,
            "target": str(self.aim),
            "kept": None if kept is None else kept.recipe,
            "directory": None if kept is None else str(destination),
            "lines": [line.as_json(self.lines[0], subject.metric, subject.words) for line in self.lines],
            "rounded": {
                one.recipe.name: words
                for one in self.made
                if (words := check_parts(subject.model, one.recipe))
            },
            "left_out": {name: error.problem for name, error in self.left_out.items()},
        }
        if self.lines:
            with writing(run):
                write_json_atomically(run / "compression.json", report)
                write_text_atomically(run / "compression.md", as_markdown(report, subject.words))
        return report


def _subject_of(run: Path) -> Subject:
    """The model of `run`.

    Raises:
        TuttiError: there is none that can be made smaller.
    """
    trained = load_trained(run)
    return (WriterSubject if WriterSubject.is_one(trained) else AskedSubject).from_trained(run, trained)


def _silent(_message: str) -> None:
    pass
