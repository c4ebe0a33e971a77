"""A model that does not write, as a service: from what somebody asks to its engine, and back in the user's words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from tutti.data.labelled import ListedRows
from tutti.explain import Reading, readings_of
from tutti.package import Asker
from tutti.serve.engine import EncoderEngine, Job, RowAnswer, Stopped
from tutti.serve.kinds import ANSWERER, CLASSIFIER, EMBEDDER, RECOMMENDER, TAGGER, Kind
from tutti.serve.trial import trial_of
from tutti.tasks import RowEncoder
from tutti.tasks.task import Example, Record, Row

#: By the kind of task.
_KINDS = {
    "classify": CLASSIFIER,
    "relate": CLASSIFIER,
    "tag": TAGGER,
    "embed": EMBEDDER,
    "recommend": RECOMMENDER,
    "answer": ANSWERER,
}
#: How long a request may take.
_DEADLINE_SECONDS = 60.0
#: Characters that are cut into tokens at once, at most, while others wait for the event loop.
_AT_ONCE_CHARACTERS = 8192


class Late(Exception):
    """It took too long."""


class Failed(Exception):
    """It could not be computed."""


@dataclass(frozen=True)
class Said:
    """To `examples`, each with some `rows`: `answers`, one for each row."""

    examples: Sequence[Example]
    rows: ListedRows
    answers: Sequence[RowAnswer]

    @property
    def tokens(self) -> int:
        """That were read."""
        return sum(len(self.rows[number]["input_ids"]) for number in range(len(self.rows)))


@dataclass(frozen=True)
class Asking:
    """`made`: when, in seconds since 1970."""

    name: str
    engine: EncoderEngine
    asker: Asker
    made: int
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def kind(self) -> Kind:
        """By its task."""
        return _KINDS[self.asker.task.kind]

    @property
    def problem(self) -> str | None:
        """Why it cannot answer now; None: it can."""
        return self.engine.problem

    @property
    def trial(self) -> tuple[str, str]:
        """A route, and what might be asked there beside the model's name, as JSON has it."""
        return self.kind.routes[0], f'"input": {json.dumps(trial_of(self.asker.task.kind))}'

    def close(self) -> None:
        """End now."""
        self.engine.close()

    def examples(self, records: Sequence[Any]) -> list[Example]:
        """`records` (texts, or fields by the names that the task has for them) as the task has them.

        Raises:
            DataError: one is no example of the task; counted from 0.
        """
        task = self.asker.task
        called = task.config.fields
        found = []
        for number, record in enumerate(records):
            fields = record if isinstance(record, dict) else {str(task.asked): record}
            named = {called.get(name, name): value for name, value in fields.items()}
            found.append(task.example(Record(f"input {number}", named), labelled=False))
        return found

    async def ask(self, examples: Sequence[Example]) -> Said:
        """What the model says to `examples`. Whoever is cancelled here is not computed any more.

        Raises:
            Full: too many wait.
            Late, Stopped, Failed: there is no answer.
        """
        rows = await self._read(examples)
        return Said(examples, rows, await self.ask_rows([rows[at] for at in range(len(rows))]))

    async def ask_rows(self, rows: Sequence[Row]) -> Sequence[RowAnswer]:
        """What the model says to each of `rows`. Raises as `ask`."""
        if not rows:
            return []
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def deliver(_: Job) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and whoever asked with it
                loop.call_soon_threadsafe(_set, ended)

        job = Job(rows, deliver, time.monotonic() + _DEADLINE_SECONDS)
        self.engine.submit(job)
        try:
            await ended
        finally:
            job.cancelled = True
        if job.outcome == "timeout":
            raise Late
        if job.outcome == "error":
            raise Failed
        if job.outcome != "done":
            raise Stopped
        return [answer for answer in job.answers if answer is not None]

    def decode(self, said: Said) -> list[dict[str, Any]]:
        """What was said in the user's words: the same as `tutti predict` says."""
        return self.asker.decode(said.answers, said.rows, said.examples)

    async def readings(self, example: Example) -> list[Reading]:
        """What the model reads of `example`, word by word."""
        return await asyncio.to_thread(self._readings, example)

    async def _read(self, examples: Sequence[Example]) -> ListedRows:
        """What the model reads of `examples`; long ones are cut into tokens beside the event loop."""
        if sum(map(_characters, examples)) <= _AT_ONCE_CHARACTERS:
            return self.asker.read(examples)
        return await asyncio.to_thread(self._read_long, examples)

    def _read_long(self, examples: Sequence[Example]) -> ListedRows:
        with self._reading:  # a tokenizer is set to what a task needs, so it belongs to one at a time
            task, labels = self.asker.task, self.asker.labels
            return ListedRows(task.rows(examples, labels, self._encoder_of_long))

    def _readings(self, example: Example) -> list[Reading]:
        with self._reading:
            return readings_of(replace(self.asker, encoder=self._encoder_of_long), example)

    @cached_property
    def _encoder_of_long(self) -> RowEncoder:
        own = self.asker.encoder
        tokenizer = Tokenizer.from_str(own.tokenizer.to_str())
        tokenizer.encode_special_tokens = own.tokenizer.encode_special_tokens
        return replace(own, tokenizer=tokenizer)


def _set(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _characters(example: Example) -> int:
    return sum(len(value) for value in example.values() if isinstance(value, str))
