"""What a model is given to do while it is timed: to answer rows, or to go on from prompts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tutti.package import open_package, open_writer
from tutti.tasks.task import Row

#: Rows, or texts, that are given together.
MANY = 32


class Seconds(NamedTuple):
    """`each`: of every answer, or of every token that was written; `read`: of each token of a prompt."""

    each: list[float]
    read: list[float]


class Drill(ABC):
    """Can be sent to another process. `one`, `many`: tasks of one row, and of 32."""

    one: list[Any]
    many: list[Any]

    @abstractmethod
    def open(self, directory: Path) -> Callable[[Any], Seconds]:
        """The model in `directory`, as what carries out a task and says how long it took."""


class Asking(Drill):
    """Rows are answered: alone, and together as a service would, which computes little padding."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.one = [list(rows[at : at + 1]) for at in range(min(len(rows), MANY))]
        self.many = [[rows[number % len(rows)] for number in range(MANY)]] * 2

    def open(self, directory: Path) -> Callable[[Any], Seconds]:
        asker = open_package(directory)

        def answer(rows: list[Row]) -> Seconds:
            began = time.perf_counter()
            for numbers in asker.passes(rows):
                asker.objective.say(asker.task.batch([rows[number] for number in numbers], asker.encoder.pad))
            return Seconds([time.perf_counter() - began], [])

        return answer


@dataclass
class _Work:
    ids: list[list[int]]
    new_tokens: int


class Continuing(Drill):
    """Prompts (tokens, all equally many) are gone on from by `new_tokens`, as transformers does it: always the
    likeliest, with what was computed of the tokens before kept."""

    def __init__(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        ids = [list(prompt) for prompt in prompts]
        self.one = [_Work(ids[:1], new_tokens)]
        self.many = [_Work([ids[number % len(ids)] for number in range(MANY)], new_tokens)]

    def open(self, directory: Path) -> Callable[[Any], Seconds]:
        model: Any = open_writer(directory).model

        def write(work: _Work) -> Seconds:
            clock, ids = _Clock(), torch.tensor(work.ids)
            began = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                min_new_tokens=work.new_tokens,
                max_new_tokens=work.new_tokens,
                streamer=clock,
            )
            written = clock.times[-work.new_tokens :]
            each = [after - before for before, after in pairwise(written)]
            return Seconds(each, [(written[0] - began) / ids.shape[1]])

        return write


class _Clock(BaseStreamer):
    """Notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass
