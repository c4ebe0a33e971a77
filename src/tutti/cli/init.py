"""`tutti init`: a commented configuration from three questions, or from flags."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tutti.cli.output import Json, exists, print_json

#: Answers to "how far": words for a number of steps.
GOALS = {"look": 200, "learn": 2000, "long": 20000}
_QUESTIONS = {
    "data": "What text (python-stdlib, a file, a folder, a glob)",
    "model": "What size (5M, 15M, 100M …, or a model directory)",
    "steps": f"How far ({', '.join(f'{word}: {steps} steps' for word, steps in GOALS.items())}; or a number)",
}
_DEFAULTS = {"data": "python-stdlib", "model": "5M", "steps": "look"}


def init(
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("tutti.yaml"),
    data: Annotated[str | None, typer.Option(help="The text to learn from.")] = None,
    model: Annotated[str | None, typer.Option(help="A size such as 15M, or a model directory.")] = None,
    steps: Annotated[str | None, typer.Option(help=f"A number of steps, or {', '.join(GOALS)}.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the file's by default.")] = None,
    json_output: Json = False,
) -> None:
    """Write a configuration to start from. Asks for what no flag says; never overwrites a file."""
    from tutti.core.errors import RunError
    from tutti.core.files import write_text_atomically
    from tutti.core.rundir import unwritable

    if exists(path):
        raise RunError(f"{path} exists already", "choose another file: tutti init OTHER.yaml")
    answers = {"data": data, "model": model, "steps": steps}
    ask = sys.stdin.isatty() and not json_output
    for question, given in answers.items():
        if given is None:
            default = _DEFAULTS[question]
            answers[question] = typer.prompt(_QUESTIONS[question], default, err=True) if ask else default
    name = _name(path) if name is None else name
    text = compose(str(answers["data"]), str(answers["model"]), str(answers["steps"]), name)
    try:
        write_text_atomically(path, text)
    except OSError as error:
        raise unwritable(path, error) from error
    if json_output:
        print_json({"path": path})
    else:
        typer.echo(f"wrote {path}; next: tutti train {path}")


def _name(path: Path) -> str:
    """A run's name made of the file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:100] or "run"


def compose(data: str, model: str, steps: str, name: str) -> str:
    """The file's text, judged before it is written.

    Raises:
        ConfigError: an answer is not something that the schema takes.
    """
    from tutti.config import load_config
    from tutti.config.dump import one_line

    wanted = {
        "name": name,
        "data.source": data,
        "model": model,
        "train.steps": GOALS.get(steps, int(steps) if steps.isdecimal() and len(steps) < 19 else steps),
    }
    config = load_config(None, [f"{key}={one_line(value)}" for key, value in wanted.items()])
    shown = {
        "name": config.name,
        "data": {"source": config.data.source, "sequence": config.data.sequence},
        "model": model,
        "train": config.train.model_dump(include={"steps", "batch", "learning_rate", "precision", "seed"}),
        "replicas": config.replicas,
        "sync": config.sync.policy,
        "evaluate": {"prompts": ["def "] if data == "python-stdlib" else ["The "]},
    }
    lines = _lines(shown)
    widest = max(len(line) for line, _ in lines if len(line) < 40)
    body = "\n".join(f"{line:<{widest}}  # {comment}" for line, comment in lines)
    return f"# Every key: tutti schema. With every default spelt out: tutti validate FILE.\n{body}\n"


def _lines(values: Mapping[str, Any], section: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Each setting as a line of YAML, with what the schema says of it."""
    from tutti.config.dump import one_line

    lines = []
    for key, value in values.items():
        path = (*section, key)
        indent = "  " * len(section)
        if isinstance(value, Mapping):
            lines += [(f"{indent}{key}:", _meaning(path)), *_lines(value, path)]
        else:
            lines.append((f"{indent}{key}: {one_line(value)}", _meaning(path)))
    return lines


def _meaning(path: tuple[str, ...]) -> str:
    """The first sentence of the schema's description: the reference has the rest."""
    import inspect

    from tutti.config.describe import field_at, section_of

    field = field_at(path)
    assert field is not None, path
    section = section_of(field)
    text = field.description or (inspect.getdoc(section) if section else "") or ""
    return " ".join(text.split()).partition(". ")[0].rstrip(".")
