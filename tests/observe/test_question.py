"""What is printed to ask a model with is what its verb takes, and what its task can read."""

import json
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from tutti.cli import app
from tutti.config.task import TaskConfig
from tutti.observe.question import first_question
from tutti.package.filler import require_masks
from tutti.tasks import make_text_task

KINDS = get_args(TaskConfig.model_fields["kind"].annotation)


def typed(command: str) -> tuple[str, dict[str, Any], list[Any]]:
    """The verb of `command`, what the command line makes of the rest, and the records that the model gets."""
    said, _, words = command.rpartition(" | ")
    program, verb, *rest = shlex.split(words)
    assert program == "tutti"
    root: Any = typer.main.get_command(app)
    given = root.commands[verb].make_context(verb, rest).params
    if said:
        assert str(given["file"]) == "-"
        echo, line = shlex.split(said)
        assert echo == "echo"
        return verb, given, [json.loads(line)]
    return verb, given, given["prompts"] if verb == "generate" else given["texts"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {}) for kind in KINDS),
        ("answer", {"question": "q", "context": "c"}),
        ("classify", {"text": "t", "pair": "p"}),
    ],
)
def test_every_kind_of_model_takes_what_is_printed(kind: str, fields: dict[str, str]) -> None:
    config = TaskConfig.model_validate({"kind": kind, "fields": fields})
    command = first_question({"task": config.model_dump()}).command("tutti", Path("runs/my run"))
    verb, given, records = typed(command)
    assert given["run"] in ("runs/my run", Path("runs/my run")) and len(records) == 1
    assert verb == ("generate" if kind in ("language_model", "chat") else "predict")
    if kind == "masked_language_model":
        require_masks(records)
    elif kind != "language_model":
        assert make_text_task(config).asked_about(records)


@pytest.mark.parametrize("prompt", ["it's", "--- a", "-n", "def f(x):\n    return"])
def test_prompts_of_the_user_arrive_as_they_are(prompt: str) -> None:
    command = first_question({"evaluate": {"prompts": [prompt]}}).command("tutti", Path("runs/r"))
    assert typed(command)[2] == [prompt]
