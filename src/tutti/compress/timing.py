"""How fast models in directories answer, and what memory they take: each in a process of its own, taking turns.

A process opens its directory as a service would, on one core, and is given the same to do as the others; round by
round one after the other, so that what else the machine does hits all alike. Tokenizing is not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


def time_packages(directories: Sequence[Path], drill: Drill) -> list[Timing]:
    """Medians over rounds, in the order of `directories`.

    Raises:
        ModelError: one could not be opened, or died.
    """
    with _workers(directories, drill) as workers:
        one: list[list[float]] = [[] for _ in workers]
        many: list[list[float]] = [[] for _ in workers]
        read: list[list[float]] = [[] for _ in workers]
        memory = [
            int(_ask(worker, directory, None)) for worker, directory in zip(workers, directories, strict=True)
        ]
        for number in range(_WARMUP + _ROUNDS):
            for place, (worker, directory) in enumerate(zip(workers, directories, strict=True)):
                singles = _ask(worker, directory, drill.one)
                together = _ask(worker, directory, drill.many)
                if number >= _WARMUP:
                    one[place] += [seconds for found in singles for seconds in found.each]
                    read[place] += [seconds for found in singles for seconds in found.read]
                    many[place] += [seconds for found in together for seconds in found.each]
        memory = [
            max(before, int(_ask(worker, directory, None)))
            for before, worker, directory in zip(memory, workers, directories, strict=True)
        ]
    return [
        Timing(median(a), median(b), c, median(d) if d else None)
        for a, b, c, d in zip(one, many, memory, read, strict=True)
    ]


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
