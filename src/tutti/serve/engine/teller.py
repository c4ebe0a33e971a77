"""What an asker is told of a text: each token as soon as its letters are certain, and why it ended."""

from __future__ import annotations

from typing import Any

from tutti.serve.engine.request import End, Likely, Piece, Reason, Request
from tutti.serve.engine.text import Writer


class Teller:
    """Of one request. `written`: tokens so far; `problem`: what its grammar could not follow."""

    def __init__(self, request: Request, tokenizer: Any, end_tokens: set[int]) -> None:
        self._request = request
        self._ends = end_tokens
        self._writer = Writer(tokenizer, request.prompt, request.stop)
        self._untold, self._likely = list[int](), list[tuple[Likely, ...]]()
        self.written = 0
        self.problem: str | None = None

    def say(self, token: int, likely: tuple[Likely, ...]) -> Reason | None:
        """`token` comes next; why the text ends with it (None: it goes on)."""
        self.written += 1
        if token in self._ends:
            return "stop"
        grammar = self._request.grammar
        if grammar is not None:
            grammar.take(token)
        self._untold.append(token)
        self._likely += [likely] if likely else []
        if certain := self._writer.add(token):
            self._tell(certain)
        if grammar is not None and grammar.problem is not None:
            self.problem = grammar.problem
            return "grammar"
        if self._writer.stopped or (grammar is not None and grammar.complete):
            return "stop"
        return "length" if self.written >= self._request.new_tokens else None

    def end(self, reason: Reason, *, cached: int = 0, problem: str | None = None) -> None:
        """Say so, after what was still uncertain; `cached`: tokens of the prompt that were paid for before."""
        rest = self._writer.end()
        if reason in ("stop", "length") and (rest or self._untold):
            self._tell(rest)
        prompt = len(self._request.prompt)
        self._request.deliver(End(reason, prompt, self.written, cached, problem or self.problem))

    def _tell(self, certain: str) -> None:
        self._request.deliver(Piece(certain, tuple(self._untold), tuple(self._likely)))
        self._untold, self._likely = [], []
