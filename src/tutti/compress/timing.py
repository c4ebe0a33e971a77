"""How fast models in directories answer, and what memory they take: each in a process of its own, taking turns.

A process opens its directory as a service would, on one core, and is given the same to do as the others; round by
round one after the other, so that what else the machine does hits all alike. Tokenizing is not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tutti.compress.drills import MANY, Drill
from tutti.core import ModelError
from tutti.launch.agent import hidden_main
from tutti.launch.server import START_METHOD, start_server

_ROUNDS, _WARMUP = 5, 2
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Timing:
    """`one`, `many`: seconds to answer 1 and 32 rows, or to write the next token of 1 and 32 texts; `read`: of one
    text, for each token of its prompt (None: nothing is written); `memory`: bytes that the process took for the model
    alone."""

    one: float
    many: float
    memory: int
    read: float | None = None

    @property
    def per_second(self) -> float:
        """Rows, or tokens, at batch 32."""
        return MANY / self.many


@dataclass
class _Timed:
    """One model, by the pipe to its process, with what it took so far; `failed`: why it is asked no more."""

    pipe: Connection
    directory: Path
    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    memory: int = 0
    failed: ModelError | None = None

    def weigh(self) -> None:
        """What its process takes now counts if it is the most."""
        self.memory = max(self.memory, int(_ask(self.pipe, self.directory, None)))

    def answer(self, drill: Drill, *, counts: bool) -> None:
        """Let it do everything once."""
        singles = _ask(self.pipe, self.directory, drill.one)
        together = _ask(self.pipe, self.directory, drill.many)
        if counts:
            self.one += [seconds for found in singles for seconds in found.each]
            self.read += [seconds for found in singles for seconds in found.read]
            self.many += [seconds for found in together for seconds in found.each]

    def result(self) -> Timing | ModelError:
        """Medians, or why there are none."""
        if self.failed is not None:
            return self.failed
        return Timing(
            median(self.one), median(self.many), self.memory, median(self.read) if self.read else None
        )


def time_packages(directories: Sequence[Path], drill: Drill) -> list[Timing | ModelError]:
    """Medians over rounds, in the order of `directories`; of one that could not be opened, or died, why."""
    turns: list[Callable[[_Timed], None]] = [
        _Timed.weigh,
        *[
            partial(_Timed.answer, drill=drill, counts=number >= _WARMUP)
            for number in range(_WARMUP + _ROUNDS)
        ],
        _Timed.weigh,
    ]
    with _workers(directories, drill) as pipes:
        timed = [_Timed(pipe, directory) for pipe, directory in zip(pipes, directories, strict=True)]
        for turn in turns:
            for one in timed:
                if one.failed is None:
                    try:
                        turn(one)
                    except ModelError as error:
                        one.failed = error
    return [one.result() for one in timed]


@contextmanager
def _workers(directories: Sequence[Path], drill: Drill) -> Iterator[list[Connection]]:
    start_server()
    context: Any = multiprocessing.get_context(START_METHOD)
    processes, pipes = [], []
    try:
        for directory in directories:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(directory, drill, theirs), daemon=True)
            with hidden_main():
                process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.kill()
            process.join()


def _ask(worker: Connection, directory: Path, work: Any) -> Any:
    answer: Any = None
    with suppress(OSError):
        worker.send(work)  # who has failed no longer listens, but has said why
    with suppress(EOFError, OSError):
        answer = worker.recv() if worker.poll(_START_SECONDS) else None
    if answer is None or isinstance(answer, str):
        raise ModelError(
            f"the model in {directory.name} could not be timed: {answer or 'its process died'}",
            "run again; if it happens again, leave that recipe out",
        )
    return answer


def _serve(directory: Path, drill: Drill, pipe: Connection) -> None:
    """Open the model; then answer None with its memory, and tasks with the seconds that each took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    with suppress(ImportError):
        import onnxruntime  # noqa: F401 - libraries are no part of a model's memory
    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_full_info().uss
    try:
        carry_out = drill.open(directory)
    except Exception as error:
        pipe.send(str(error))
        return
    with torch.no_grad(), suppress(EOFError):
        while True:
            tasks = pipe.recv()
            if tasks is None:
                pipe.send(max(0, process.memory_full_info().uss - before))
            else:
                pipe.send([carry_out(task) for task in tasks])
