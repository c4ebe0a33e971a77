"""A question answered from documents, with what the answer was taken from, as far as the model that is served can.

A model that finds answers in texts is asked about each of the best passages, and the surest stretch is the answer. One
that writes is given the passages, and writes. One that makes vectors finds the passages, which are the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutti.core import DataError
from tutti.serve.asking import Asking, Late
from tutti.serve.documents import Hit, Library
from tutti.serve.engine import End, Sampling, Stopped
from tutti.serve.kinds import ANSWERER
from tutti.serve.service import Service

_ORDER = (
    "Answer the question by what the passages say, in a few sentences, and name those that you used by their numbers, "
    "like [1]. If they do not say it, say that you do not know."
)


@dataclass(frozen=True)
class Answered:
    """`text`: None where the passages have to do. `score`: how sure, where the model says. `tokens`: read, and
    written."""

    text: str | None
    score: float | None
    citations: Sequence[dict[str, Any]]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class Answering:
    """`library`: asked for the passages that `service` answers from."""

    service: Service | Asking
    library: Library

    @property
    def trial(self) -> tuple[str, str]:
        """A route, and what might be asked there beside the model's name, as JSON has it."""
        return ANSWERER.routes[0], '"question": "What is this about?"'

    async def answer(self, question: str, passages: int, new_tokens: int, owner: str) -> Answered:
        """The answer to `question` of `owner` from so many passages, of at most `new_tokens` where it is written.

        Raises:
            Full, Late, Stopped, Failed: there is none.
            DataError: there is no room for it.
        """
        hits = await self.library.find(question, passages)
        if isinstance(self.service, Service):
            return await _written(self.service, question, hits, new_tokens, owner)
        if self.service.kind is ANSWERER and hits:
            return await _extracted(self.service, question, hits)
        return Answered(None, None, [hit._asdict() for hit in hits], (0, 0))


async def _extracted(service: Asking, question: str, hits: Sequence[Hit]) -> Answered:
    examples = service.examples([{"question": question, "context": hit.passage} for hit in hits])
    said = await service.ask(examples)
    citations = []
    for hit, found in zip(hits, service.decode(said), strict=True):
        own = None
        if found["start"] is not None:
            start = hit.start + found["start"]
            own = {"text": found["answer"], "start": start, "end": start + len(found["answer"])}
        citations.append(hit._asdict() | {"answer": own, "answer_score": found["score"]})
    with_answer = [one for one in citations if one["answer"] is not None]
    if not with_answer:
        return Answered(None, None, citations, (said.tokens, 0))
    best = max(with_answer, key=lambda one: one["answer_score"])
    citations.sort(key=lambda one: one is not best)
    return Answered(best["answer"]["text"], best["answer_score"], citations, (said.tokens, 0))


async def _written(
    service: Service, question: str, hits: Sequence[Hit], new_tokens: int, owner: str
) -> Answered:
    room = service.engine.context - new_tokens
    shown = list(hits)
    while len(prompt := _prompt(service, question, shown)) > room and shown:
        shown.pop()  # the worst
    if len(prompt) > room:
        raise DataError(
            f"this model sees {service.engine.context} tokens: {new_tokens} of the answer leave no room for the "
            f"question, which takes {len(prompt)}"
        )
    answer = service.ask(prompt, new_tokens, Sampling(temperature=0.0), ("\nQuestion:",), owner=owner)
    parts: list[str] = []
    try:
        while not isinstance(event := await answer.next(), End):
            parts.append(event.text)
    finally:
        answer.cancel()
    if event.reason == "timeout":
        raise Late
    if event.reason not in ("stop", "length"):
        raise Stopped
    citations = [hit._asdict() | {"number": number} for number, hit in enumerate(shown, 1)]
    return Answered("".join(parts).strip(), None, citations, (event.prompt_tokens, event.new_tokens))


def _prompt(service: Service, question: str, hits: Sequence[Hit]) -> list[int]:
    passages = "\n\n".join(f"[{number}] {hit.passage}" for number, hit in enumerate(hits, 1))
    if service.turn is None:
        return service.tokens_of(f"{passages}\n\n{_ORDER}\n\nQuestion: {question}\nAnswer:")
    asked = f"{_ORDER}\n\n{passages}\n\nQuestion: {question}"
    return service.turn([{"role": "user", "content": asked}])
