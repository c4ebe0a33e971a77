"""What a trained model can be asked, as a command that works as it is printed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """`verb`: which command asks. `asked`: a text, or the fields of an example where a text is not enough."""

    verb: str
    asked: str | Mapping[str, str]

    def command(self, program: str, model: Path) -> str:
        """Asks `model`, a run or what was made of one; `program`: what to type for `tutti`."""
        words = f"{program} {self.verb} {shlex.quote(str(model))}"
        if not isinstance(self.asked, str):
            return f"echo {shlex.quote(json.dumps(self.asked, ensure_ascii=False))} | {words} --file -"
        options_end = "-- " if self.asked.startswith("-") else ""
        return f"{words} {options_end}{shlex.quote(self.asked)}"


def first_question(config: Mapping[str, Any]) -> Question:
    """For the model of a run with this configuration: something that the user wanted to know, if anything."""
    task = config.get("task") or {}
    kind, fields = task.get("kind", "language_model"), task.get("fields") or {}
    prompts = (config.get("evaluate") or {}).get("prompts") or []
    if kind in ("language_model", "chat"):
        return Question("generate", str(prompts[0] if prompts else "Once upon a time"))
    if kind == "masked_language_model":
        return Question("predict", str(prompts[0] if prompts else "a word is [MASK] here"))
    if kind == "answer":
        question, context = fields.get("question", "question"), fields.get("context", "context")
        return Question("predict", {question: "Who called?", context: "Ada called, and Bob answered."})
    if kind == "classify" and "pair" in fields:  # a field that has a name is always there
        return Question("predict", {fields.get("text", "text"): "your text", fields["pair"]: "the other one"})
    if kind == "relate":
        return Question("predict", "The <e1>one</e1> and the <e2>other</e2>")
    return Question("predict", "one item|another item" if kind == "recommend" else "your text")
