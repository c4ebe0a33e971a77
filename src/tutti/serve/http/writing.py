"""`/v1/completions` and `/v1/chat/completions`: one way to answer, written down in two."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutti.serve.engine import End, Full, Grammar, Piece, Sampling, Stopped
from tutti.serve.refusal import Refusal, late, overloaded, stopped
from tutti.serve.service import Answer, Service

_FINISH = {"stop": "stop", "length": "length"}


@dataclass
class Choice:
    """One answer: what is asked of the engine, and what has come."""

    index: int
    prompt: list[int]
    sampling: Sampling
    grammar: Grammar | None = None
    pieces: list[Piece] = field(default_factory=list)
    end: End | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)


class Form(ABC):
    """How answers look."""

    #: Of ids, and of `object` of a whole answer and of a part.
    prefix: str
    whole: str
    part: str

    def __init__(self, service: Service) -> None:
        self.service = service

    @abstractmethod
    def choice(self, index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def delta(
        self, index: int, text: str, logprobs: Any, reason: str | None, *, first: bool
    ) -> dict[str, Any]:
        """A part of one."""

    @abstractmethod
    def logprobs(self, pieces: Sequence[Piece], before: int) -> Any:
        """Of the tokens in `pieces`, which come after so many letters."""


class CompletionForm(Form):
    """Text that goes on."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def delta(
        self, index: int, text: str, logprobs: Any, reason: str | None, *, first: bool
    ) -> dict[str, Any]:
        return self.choice(index, text, logprobs, reason)

    def logprobs(self, pieces: Sequence[Piece], before: int) -> Any:
        likely = [one for piece in pieces for one in piece.likely]
        word = self.service.words.word
        offsets = []
        for piece in pieces:
            places = self.service.words.places([own.token for own, *_ in piece.likely])
            offsets += [before + min(place, len(piece.text)) for place in places]
            before += len(piece.text)
        return {
            "tokens": [word(own.token) for own, *_ in likely],
            "token_logprobs": [own.logprob for own, *_ in likely],
            "top_logprobs": [{word(o.token): o.logprob for o in others} for _, *others in likely],
            "text_offset": offsets,
        }


class ChatForm(Form):
    """An assistant's message."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def delta(
        self, index: int, text: str, logprobs: Any, reason: str | None, *, first: bool
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant"} if first else {}
        if text or first:
            said["content"] = text
        return {"index": index, "delta": said, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, pieces: Sequence[Piece], before: int) -> Any:
        def line(token: int, logprob: float) -> dict[str, Any]:
            words = self.service.words
            return {"token": words.word(token), "logprob": logprob, "bytes": list(words.bytes_of(token))}

        return {
            "content": [
                {
                    **line(own.token, own.logprob),
                    "top_logprobs": [line(other.token, other.logprob) for other in others],
                }
                for piece in pieces
                for own, *others in piece.likely
            ],
            "refusal": None,
        }


class Writing:
    """One request of `owner` on its way: `prompts` × `n` answers of at most `new_tokens` (None: what there is room
    for)."""

    def __init__(
        self,
        form: Form,
        choices: list[Choice],
        new_tokens: int | None,
        stop: tuple[str, ...],
        *,
        tells_usage: bool,
        owner: str,
    ) -> None:
        self._owner = owner
        self._form = form
        self._service = form.service
        self._choices = choices
        self._stop = stop
        self._tells_usage = tells_usage
        self._new_tokens = new_tokens
        self._head = {
            "id": f"{form.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self._service.name,
        }
        self._answers: list[Answer] = []

    def begin(self) -> None:
        """Have everything taken on, or nothing.

        Raises:
            Refusal: too many wait, or it cannot be answered.
        """
        room = self._service.engine.context
        for choice in self._choices:
            count = len(choice.prompt)
            if not count:
                raise Refusal(400, "the prompt is empty", param="prompt")
            if count >= room:
                raise Refusal(
                    400,
                    f"this model sees {room} tokens, its answer among them, and the prompt has {count}",
                    code="context_length_exceeded",
                    param="prompt",
                )
        for choice in self._choices:
            most = room - len(choice.prompt)
            most = most if self._new_tokens is None else min(self._new_tokens, most)
            try:
                self._answers.append(
                    self._service.ask(
                        choice.prompt, most, choice.sampling, self._stop, choice.grammar, self._owner
                    )
                )
            except Full as full:
                self.cancel()
                raise overloaded() from full
            except Stopped as error:
                self.cancel()
                raise stopped() from error

    def cancel(self) -> None:
        """Nobody listens any more."""
        for answer in self._answers:
            answer.cancel()

    async def whole(self) -> dict[str, Any]:
        """The answers when all are there."""
        try:
            async for choice, event in self._all():
                if isinstance(event, Piece):
                    choice.pieces.append(event)
        finally:
            self.cancel()
        lines = []
        for choice in self._choices:
            assert choice.end is not None
            told = None if choice.sampling.logprobs is None else self._form.logprobs(choice.pieces, 0)
            lines.append(self._form.choice(choice.index, choice.text, told, _FINISH[choice.end.reason]))
        return {"object": self._form.whole, **self._head, "choices": lines, "usage": self._usage()}

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events."""
        letters = dict[int, int]()  # of each choice so far
        try:
            async for choice, event in self._all():
                first, before = choice.index not in letters, letters.get(choice.index, 0)
                text = event.text if isinstance(event, Piece) else ""
                told = None
                if isinstance(event, Piece) and choice.sampling.logprobs is not None:
                    told = self._form.logprobs([event], before)
                letters[choice.index] = before + len(text)
                reason = _FINISH[event.reason] if isinstance(event, End) else None
                yield self._chunk([self._form.delta(choice.index, text, told, reason, first=first)])
            if self._tells_usage:
                yield self._chunk([], usage=self._usage())
            yield "data: [DONE]\n\n"
        except Refusal as refusal:  # the status was sent long ago
            yield f"data: {json.dumps(refusal.body())}\n\n"
        finally:
            self.cancel()

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        usage = {"usage": None} if self._tells_usage else {}
        line = {"object": self._form.part, **self._head, "choices": choices, **usage, **more}
        return f"data: {json.dumps(line, ensure_ascii=False)}\n\n"

    async def _all(self) -> AsyncIterator[tuple[Choice, Piece | End]]:
        """What comes of all answers, as it comes, until every one has ended.

        Raises:
            Refusal: one cannot be ended.
        """
        waiting = {
            asyncio.ensure_future(a.next()): (c, a) for c, a in zip(self._choices, self._answers, strict=True)
        }
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    choice, answer = waiting.pop(task)
                    event = task.result()
                    if isinstance(event, End):
                        choice.end = event
                        _require_an_answer(event)
                    else:
                        waiting[asyncio.ensure_future(answer.next())] = (choice, answer)
                    yield choice, event
        finally:
            for task in waiting:
                task.cancel()

    def _usage(self) -> dict[str, Any]:
        ends = [choice.end for choice in self._choices if choice.end is not None]
        prompts = {id(choice.prompt): len(choice.prompt) for choice in self._choices}
        prompt, written = sum(prompts.values()), sum(end.new_tokens for end in ends)
        # Of several answers to one prompt the first reads it, and it counts once.
        cached = dict(prompts)
        for choice in self._choices:
            told = 0 if choice.end is None else choice.end.cached_tokens
            cached[id(choice.prompt)] = min(cached[id(choice.prompt)], told)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }


def _require_an_answer(end: End) -> None:
    if end.reason == "timeout":
        raise late()
    if end.reason == "grammar":
        raise Refusal(400, f"the schema cannot be followed: {end.problem}", param="response_format")
    if end.reason not in _FINISH:
        raise stopped()
