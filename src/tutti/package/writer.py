"""A model that writes, with its tokenizer: it goes on from texts, and answers to examples of its task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from tutti.core import RunError
from tutti.core.live import beat
from tutti.core.record import Asked
from tutti.models import generate, generate_from
from tutti.tasks import Example, Labels, RowEncoder, Writing
from tutti.tasks.talk import begin_turn, begin_turns, read_talk
from tutti.tasks.task import Record

#: Texts that are written at once.
_AT_ONCE = 32


@dataclass
class Writer:
    """`tokenizer`: transformers'. `task`, `encoder`: of what it learned from examples; None: it learned running text.

    `new_tokens`: that it writes to an example, at most; `beams`: texts that it follows side by side there.
    """

    model: PreTrainedModel
    tokenizer: Any
    task: Writing | None = None
    encoder: RowEncoder | None = None
    new_tokens: int = 64
    beams: int = 1

    def go_on(
        self,
        prompts: Sequence[str],
        new_tokens: int,
        *,
        temperature: float,
        top_k: int,
        seed: int,
        suffix: str = "",
    ) -> list[str]:
        """What it writes after each of `prompts`; in a talk: to each."""
        talks = self.encoder is not None and self.encoder.render is not None
        return generate(
            self.model,
            self.tokenizer,
            begin_turns(self.encoder, prompts) if self.encoder is not None and talks else prompts,
            new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            suffix=suffix,
        )

    def predict(self, records: Sequence[Asked]) -> list[dict[str, Any]]:
        """What it writes to `records`: texts, or the fields of examples as the user's files have them.

        Raises:
            TuttiError: a record is no example of the task.
        """
        task, _ = self._learned()
        return [{"text": text} for text in self.write(task.asked_about(records))]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """Metrics of what it writes to `records`, which say themselves what would be right.

        Raises:
            TuttiError: a record is no example of the task, or nothing measures what is written for it.
        """
        task, _ = self._learned()
        examples = [task.example(record) for record in records]
        if not (found := task.score(self.write(examples), examples)):
            raise RunError(f"there is no metric of what a model writes for task {task.kind}", "read it")
        return found

    def write(self, examples: Sequence[Example]) -> list[str]:
        """What it writes to what is given in each of `examples`: always the likeliest token, or text of
        `beams`."""
        task, encoder = self._learned()
        most, beams = self.new_tokens, self.beams
        read: list[Any]
        answer: Callable[[list[Any]], list[str]]
        if encoder.render is None:
            read = [list(row["input_ids"]) for (row,) in task.rows(examples, Labels((), ()), encoder)]
            answer = partial(generate_from, self.model, self.tokenizer, new_tokens=most, beams=beams)
        else:
            read = []
            for example in examples:
                over = len(read_talk(encoder, task.given(example))[0]) + most - encoder.length
                given = task.given(task.fit(example, encoder, over) if over > 0 else example)
                read.append(begin_turn(encoder, given))
            answer = partial(
                generate, self.model, self.tokenizer, new_tokens=most, temperature=0.0, beams=beams
            )
        written = [""] * len(read)
        order = sorted(range(len(read)), key=lambda number: len(read[number]))  # alike lengths together
        for first in range(0, len(order), _AT_ONCE):
            beat()
            some = order[first : first + _AT_ONCE]
            for number, text in zip(some, answer([read[number] for number in some]), strict=True):
                written[number] = text
        return written

    def _learned(self) -> tuple[Writing, RowEncoder]:
        if self.task is None or self.encoder is None:
            raise RunError(
                "this is a language model, which learned from no labelled examples",
                "let it write with `tutti generate`",
            )
        return self.task, self.encoder
