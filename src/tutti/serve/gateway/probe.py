"""Questions whose answers are known: a version is asked them before anybody else asks it.

    {"input": "My card is lost.", "expected": "lost_or_stolen_card"}
    {"prompt": "The capital of France is", "max_tokens": 3, "expected": " Paris."}
    {"messages": [{"role": "user", "content": "Two and two?"}], "max_tokens": 5, "expected": "Four."}

A line each: what would be sent to the model's route, and the answer. It is as expected where the label, the best item,
the answer's or the written text is the same (writers are asked with temperature 0), and all entities as [text, label].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tutti.core.errors import DataError
from tutti.serve.gateway.worker import Worker
from tutti.serve.kinds import ANSWERER, CLASSIFIER, RECOMMENDER, TAGGER, WRITER

#: Of a question.
_SECONDS = 120.0
_ASKED = ("input", "prompt", "messages")
#: What the answer is, in the first item of what a route says; by kind of model.
_ANSWERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    CLASSIFIER.name: lambda one: one["labels"] if "labels" in one else one["label"],
    TAGGER.name: lambda one: [[entity["text"], entity["label"]] for entity in one["entities"]],
    RECOMMENDER.name: lambda one: one["items"][0]["item"],
    ANSWERER.name: lambda one: one["answer"],
    WRITER.name: lambda one: one["text"] if "text" in one else one["message"]["content"],
}


@dataclass(frozen=True)
class Question:
    """`asked`: the body of a request."""

    asked: dict[str, Any]
    expected: Any


@dataclass(frozen=True)
class Probed:
    """So many of `questions` were answered as expected; `failed`: not at all."""

    right: int
    failed: int
    questions: int

    @property
    def share(self) -> float:
        """Right ones of all."""
        return self.right / self.questions

    def __str__(self) -> str:
        broken = f" ({self.failed} not at all)" if self.failed else ""
        return f"{self.right} of {self.questions} answers as expected{broken}"


def read_probe(path: Path) -> tuple[Question, ...]:
    """The questions in the file at `path`.

    Raises:
        DataError: there are none, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the probe {path} cannot be read: {error}", "name a file of JSON lines") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            asked = json.loads(line)
            expected = asked.pop("expected")
            if not any(name in asked for name in _ASKED):
                raise KeyError(" or ".join(_ASKED))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else "it is no JSON object"
            raise DataError(
                f"{path}, line {number}: {reason}", 'a line is {"input": "…", "expected": "…"}'
            ) from error
        found.append(Question(asked, expected))
    if not found:
        raise DataError(f"the probe {path} has no questions", 'a line is {"input": "…", "expected": "…"}')
    return tuple(found)


async def ask_probe(worker: Worker, questions: Sequence[Question]) -> Probed:
    """How `worker` answers `questions`, one after the other.

    Raises:
        DataError: nothing can be expected of such a model.
    """
    with worker.busy():
        async with worker.session.get("http://worker/v1/models") as answer:
            model = (await answer.json())["data"][0]
        if model["kind"] not in _ANSWERS:
            raise DataError(
                f"a probe compares labels, entities, items, answers or texts, and {model['id']} is an {model['kind']}",
                "leave out the probe",
            )
        right = failed = 0
        for question in questions:
            try:
                right += await _answer(worker, model, question.asked) == question.expected
            except (aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError):
                failed += 1
    return Probed(right, failed, len(questions))


async def _answer(worker: Worker, model: dict[str, Any], asked: dict[str, Any]) -> Any:
    route, body = model["routes"][0], asked
    if model["kind"] == WRITER.name:
        route = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
        body = {"temperature": 0.0} | asked
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with worker.session.post(f"http://worker{route}", json=body, timeout=timeout) as answer:
        answer.raise_for_status()
        said = await answer.json()
    first = (said["choices"] if "choices" in said else said["data"])[0]
    return _ANSWERS[model["kind"]](first)
