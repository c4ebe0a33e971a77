"""JSON that follows a schema: before each token is drawn, those after which the text could not follow it are ruled out.

What may come is worked out by llguidance, for the tokenizer of the model: tokens whose bytes end in the middle of a
letter, or hold a quote and a comma, are dealt with there.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: Between what belongs to JSON. Without a bound a model that is not sure of itself may write spaces for ever.
_SPACES: Any = {"whitespace_pattern": r"[ \n\t]{0,20}"}
#: Schemas that stay compiled.
_KEPT_SCHEMAS = 64


class NoGrammar(ValueError):
    """The schema, or the tokenizer, cannot be used; says why."""


class Grammar:
    """What one text may be. Used by the engine's thread alone."""

    def __init__(self, matcher: LLMatcher, never: Sequence[int]) -> None:
        self._matcher = matcher
        self._never = list(never)

    def copy(self) -> Grammar:
        """Of another text, from where this one is."""
        return Grammar(self._matcher.deep_copy(), self._never)

    @property
    def complete(self) -> bool:
        """Whether nothing more may come."""
        return self._matcher.is_stopped()

    @property
    def problem(self) -> str | None:
        """Why it cannot be followed any further."""
        return _first_line(self._matcher.get_error()) if self._matcher.is_error() else None

    def permitted(self, vocabulary: int) -> Tensor:
        """Whether each token may come next, bool [vocabulary]."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        every = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        every[self._never] = False
        found = torch.zeros(vocabulary, dtype=torch.bool)
        known = min(vocabulary, len(every))
        found[:known] = every[:known]
        return found

    def take(self, token: int) -> None:
        """`token` was written."""
        self._matcher.consume_token(token)


class Grammars:
    """Of the texts of a model with so large a `vocabulary`; `end_tokens`: by which it says that a text ends."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: set[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(end_tokens)
        self._lock = threading.Lock()
        self._compiled = functools.lru_cache(_KEPT_SCHEMAS)(self._compile)

    def json(self, schema: dict[str, Any]) -> Grammar:
        """What follows `schema`. Takes up to a second, the first time.

        Raises:
            NoGrammar: it is no schema, or more than can be followed; or the tokenizer is of a kind of its own.
        """
        try:
            return self._compiled(json.dumps(schema)).copy()
        except RecursionError as error:
            raise NoGrammar("the schema is nested too deeply") from error

    def _compile(self, schema: str) -> Grammar:
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_SPACES)
        except ValueError as error:
            raise NoGrammar(_first_line(str(error))) from error
        known = self._known()
        matcher = LLMatcher(known, grammar, log_level=0)
        if matcher.is_error():
            raise NoGrammar(_first_line(matcher.get_error()))
        # A model that ends nothing by a token has none to spare: the one taken for it is ruled out.
        return Grammar(matcher, () if self._ends else known.eos_tokens)

    def _known(self) -> LLTokenizer:
        with self._lock:  # it takes a second: once will do
            return self._of_tokenizer

    @functools.cached_property
    def _of_tokenizer(self) -> LLTokenizer:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(
                self._tokenizer,
                n_vocab=max(self._vocabulary, len(self._tokenizer)),
                eos_token=self._ends or None,
            )
        except ValueError as error:
            raise NoGrammar(
                f"this model's tokenizer cannot be followed: {_first_line(str(error))}"
            ) from error


def rule_out(logits: Tensor, grammars: Sequence[Grammar | None]) -> Tensor:
    """`logits` [n, V] of texts with `grammars`: minus infinity where a token may not come. Not in place, where there is
    anything to do."""
    bound = [(row, grammar) for row, grammar in enumerate(grammars) if grammar is not None]
    if not bound:
        return logits
    logits = logits.clone()
    for row, grammar in bound:
        allowed = grammar.permitted(logits.shape[1])
        logits[row].masked_fill_(~allowed.to(logits.device), float("-inf"))
    return logits


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "it cannot be read"
