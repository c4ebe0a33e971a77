"""What is served: a model under its name, and how requests get to its engine and answers back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tutti.models.prompts import before_and_after, read_prompt
from tutti.serve.engine import End, Engine, Grammar, Grammars, Piece, Request, Sampling
from tutti.serve.engine.paged import PagedEngine
from tutti.serve.kinds import WRITER, Kind
from tutti.serve.words import Words

#: How long a request may take.
_DEADLINE_SECONDS = 600.0

#: A conversation (role and content of each message) as tokens, up to the answer.
Turn = Callable[[Sequence[dict[str, str]]], list[int]]


@dataclass(frozen=True)
class Service:
    """`turn`: None where the model has learned no conversations. `made`: when, in seconds since 1970. `vocabulary`:
    tokens that it knows. `most_texts`: for one request."""

    name: str
    engine: Engine | PagedEngine
    tokenizer: Any
    turn: Turn | None
    made: int
    vocabulary: int
    most_texts: int
    words: Words = field(init=False)
    grammars: Grammars = field(init=False)
    kind: ClassVar[Kind] = WRITER

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", Words(self.tokenizer))
        grammars = Grammars(self.tokenizer, self.vocabulary, self.engine.end_tokens)
        object.__setattr__(self, "grammars", grammars)

    @property
    def problem(self) -> str | None:
        """Why it cannot answer now; None: it can."""
        return self.engine.problem

    @property
    def trial(self) -> tuple[str, str]:
        """A route, and what might be asked there beside the model's name, as JSON has it."""
        if self.turn is None:
            return "/v1/completions", '"prompt": "The", "max_tokens": 32'
        return "/v1/chat/completions", '"messages": [{"role": "user", "content": "Hello"}]'

    def close(self) -> None:
        """End now."""
        self.engine.close()

    def tokens_of(self, text: str) -> list[int]:
        """`text` to go on from, as the model reads it."""
        return read_prompt(self.tokenizer, text)

    def around(self, prompt: list[int], suffix: str) -> list[int]:
        """What the model is given to write what stands between the two. Raises as `before_and_after`."""
        return before_and_after(self.tokenizer, prompt, suffix)

    def ask(
        self,
        prompt: list[int],
        new_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...],
        grammar: Grammar | None = None,
        owner: str = "",
    ) -> Answer:
        """Have the engine go on from `prompt`, for `owner`. Raises as `Engine.submit`."""
        answer = Answer(prompt, new_tokens, sampling, stop, grammar, owner)
        self.engine.submit(answer.request)
        return answer


class Answer:
    """What the engine says, for one listener in the event loop that asked."""

    def __init__(
        self,
        prompt: list[int],
        new_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...],
        grammar: Grammar | None,
        owner: str,
    ) -> None:
        loop, self._arrived = asyncio.get_running_loop(), asyncio.Queue[Piece | End]()

        def deliver(event: Piece | End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the listener with it
                loop.call_soon_threadsafe(self._arrived.put_nowait, event)

        deadline = time.monotonic() + _DEADLINE_SECONDS
        self.request = Request(prompt, new_tokens, deliver, sampling, stop, grammar, deadline, owner)

    async def next(self) -> Piece | End:
        """What comes next, `End` last."""
        return await self._arrived.get()

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.request.cancelled = True
