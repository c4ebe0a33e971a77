"""Continuous batching: one thread that takes requests in, reads prompts in pieces, and writes all texts a token a turn.

A request waits until a slot is free. Prompts are read in the order in which they came, at most `reading_tokens` a turn,
beside the texts that are being written: a long prompt delays them by a piece, not by its length. A slot keeps what was
in it, so a request whose prompt begins like a former one's (a system prompt, a conversation that goes on) reads only
the rest; where another slot holds the beginning, it is copied, which costs next to nothing beside computing it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tutti.serve.engine.cache import Part, Turn
from tutti.serve.engine.draw import Dice, draw, likeliest
from tutti.serve.engine.grammar import rule_out
from tutti.serve.engine.request import End, Likely, Reason, Request
from tutti.serve.engine.slots import SlotModel
from tutti.serve.engine.teller import Teller
from tutti.serve.engine.thread import EngineThread, Full

#: A common beginning of so many tokens is worth looking for.
_WORTH_TOKENS = 8


@dataclass
class _Slot:
    """`left`: tokens whose keys and values were left in it; `text`: being served (None: free). `owner`: of both."""

    number: int
    owner: str = ""
    left: list[int] = field(default_factory=list)
    text: _Text | None = None
    freed: float = 0.0

    @property
    def tokens(self) -> list[int]:
        """Whose keys and values lie in it."""
        return self.left if self.text is None else self.text.tokens[: self.text.read]


@dataclass
class _Text:
    """A request in its slot. `tokens`: of the prompt and written; those from `read` on are not in the cache. `turn`: of
    all that were let in, the how manieth."""

    request: Request
    turn: int
    slot: _Slot
    teller: Teller
    dice: Dice
    tokens: list[int]
    read: int
    cached: int

    @property
    def reads(self) -> bool:
        """Whether more than the newest token is still to be read."""
        return len(self.tokens) - self.read > 1 or self.teller.written == 0


class Engine(EngineThread[Request]):
    """`queue_length`: requests that may wait beside those in slots."""

    def __init__(
        self,
        model: SlotModel,
        tokenizer: Any,
        *,
        end_tokens: set[int],
        queue_length: int,
        reading_tokens: int = 256,
    ) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._ends = end_tokens
        self._slots = [_Slot(number) for number in range(model.cache.slots)]
        self._waiting: deque[Request] = deque()
        self._queue_length = queue_length
        self._reading_tokens = reading_tokens
        self._queued = self._served = 0
        self.begin()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._model.context

    @property
    def end_tokens(self) -> set[int]:
        """By which the model says that a text ends."""
        return self._ends

    @property
    def load(self) -> tuple[int, int]:
        """Requests in slots, and waiting."""
        return sum(slot.text is not None for slot in self._slots), self._queued

    def submit(self, request: Request) -> None:
        """Serve `request`; its `deliver` is told everything from now on, `End` last.

        Raises:
            Full, Stopped: too many wait already, or it has ended.
            ValueError: the prompt is empty or leaves no room for an answer.
        """
        request.require_room(self.context)
        self._let_in(request)

    def _count_in(self, asked: Request) -> None:
        if sum(self.load) >= len(self._slots) + self._queue_length:
            raise Full
        self._queued += 1

    # The thread ----------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._waiting += self._arrived(wait=not self._busy)
        self._admit()
        if self._busy:
            self._turn()

    def _farewell(self, problem: str | None) -> None:
        reason: Reason = "cancelled" if problem is None else "error"
        for slot in self._slots:
            if slot.text is not None:
                self._end(slot.text, reason, problem)
            slot.left = []  # what lies there may be half of a pass
        for request in [*self._waiting, *self._arrived(wait=False)]:
            self._refuse(request, reason, problem)
        self._waiting.clear()

    @property
    def _busy(self) -> bool:
        return any(slot.text is not None for slot in self._slots)

    def _admit(self) -> None:
        """Give free slots to those who wait."""
        now = time.monotonic()
        for request in [one for one in self._waiting if self._over(one, now)]:
            self._waiting.remove(request)
            self._refuse(request, "cancelled" if request.cancelled else "timeout")
        while self._waiting and (free := [slot for slot in self._slots if slot.text is None]):
            request = self._waiting[0]
            slot, cached = self._place(request, free)
            text = _Text(
                request,
                self._served + 1,
                slot,
                Teller(request, self._tokenizer, self._ends),
                Dice(request.sampling.seed),
                list(request.prompt),
                read=cached,
                cached=cached,
            )
            self._waiting.popleft()  # not before it has a place: nobody is forgotten when that fails
            self._served += 1
            slot.owner = request.owner
            # At once, so that it is counted once whenever somebody asks whether there is room.
            with self._lock:
                self._queued -= 1
                slot.text = text

    def _place(self, request: Request, free: list[_Slot]) -> tuple[_Slot, int]:
        """A slot, and how many tokens of the prompt are in it; the last one is always read, for what comes after it."""
        most = len(request.prompt) - 1
        known = {
            slot.number: _common(slot.tokens, request.prompt, most) if slot.owner == request.owner else 0
            for slot in self._slots
        }
        own = max(free, key=lambda slot: known[slot.number])
        source = max(self._slots, key=lambda slot: known[slot.number])
        if known[own.number] >= max(_WORTH_TOKENS, known[source.number]):
            return own, known[own.number]
        oldest = min(free, key=lambda slot: (len(slot.left) > 0, slot.freed, slot.number))
        if known[source.number] < _WORTH_TOKENS:
            return oldest, 0
        self._model.cache.copy(source.number, oldest.number, known[source.number])
        return oldest, known[source.number]

    def _turn(self) -> None:
        """One pass: a token for everybody who writes, and a piece for who reads."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.text is not None and self._over(slot.text.request, now):
                self._end(slot.text, "cancelled" if slot.text.request.cancelled else "timeout")
        texts = [slot.text for slot in self._slots if slot.text is not None]
        if not texts:
            return
        writing = [text for text in texts if not text.reads]
        parts = [Part(text.slot.number, text.read, 1) for text in writing]
        reading, pieces, left = list[_Text](), list[Part](), self._reading_tokens
        for text in sorted((one for one in texts if one.reads), key=lambda one: one.turn):
            count = min(left, len(text.tokens) - text.read)
            if count:
                reading.append(text)
                pieces.append(Part(text.slot.number, text.read, count))
                left -= count
        tokens, wanted, drawing = list[int](), list[int](), list[_Text]()
        for text, part in zip([*writing, *reading], [*parts, *pieces], strict=True):
            tokens += text.tokens[part.start : part.start + part.count]
            text.read += part.count
            if text.read == len(text.tokens):
                wanted.append(len(tokens) - 1)
                drawing.append(text)
        logits = self._model.run(Turn(parts, pieces), tokens, wanted or [0])
        if not drawing:
            return
        permitted = rule_out(logits, [text.request.grammar for text in drawing])
        found = draw(permitted, [text.request.sampling for text in drawing], [text.dice for text in drawing])
        for row, (text, token) in enumerate(zip(drawing, found, strict=True)):
            told = text.request.sampling.logprobs
            self._say(text, token, () if told is None else likeliest(logits[row], token, told))

    def _say(self, text: _Text, token: int, likely: tuple[Likely, ...]) -> None:
        """`token` is the next one of `text`."""
        reason = text.teller.say(token, likely)
        if token not in self._ends:
            text.tokens.append(token)
        if reason is None and len(text.tokens) >= self.context:
            reason = "length"
        if reason is not None:
            self._end(text, reason)

    def _end(self, text: _Text, reason: Reason, problem: str | None = None) -> None:
        slot = text.slot
        slot.left, slot.text, slot.freed = slot.tokens, None, time.monotonic()
        text.teller.end(reason, cached=text.cached, problem=problem)

    def _refuse(self, request: Request, reason: Reason, problem: str | None = None) -> None:
        with self._lock:
            self._queued -= 1
        request.deliver(End(reason, len(request.prompt), 0, 0, problem))

    def _over(self, request: Request, now: float) -> bool:
        return request.cancelled or (request.deadline is not None and now > request.deadline)


def _common(one: list[int], other: list[int], most: int) -> int:
    """Tokens with which both begin, at most `most`."""
    count = 0
    for a, b in zip(one, other[:most], strict=False):
        if a != b:
            break
        count += 1
    return count
