"""How fast models in directories answer, and what memory they take: each in a process of its own, taking turns.

A process opens its directory as a service would, on one core, and is asked with the same rows as the others; round by
round one after the other, so that what else the machine does hits all alike. Tokenizing is not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tutti.core import ModelError
from tutti.launch.agent import hidden_main
from tutti.launch.server import START_METHOD, start_server
from tutti.tasks.task import Row

_MANY = 32
_ROUNDS, _WARMUP = 5, 2
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Timing:
    """`one`, `many`: seconds to answer 1 and 32 rows; `memory`: bytes that the process took for the model alone."""

    one: float
    many: float
    memory: int

    @property
    def rows_per_second(self) -> float:
        """At batch 32."""
        return _MANY / self.many


def time_packages(directories: Sequence[Path], rows: Sequence[Row]) -> list[Timing]:
    """Medians over rounds, in the order of `directories`.

    Raises:
        ModelError: one could not be opened, or died.
    """
    batches = [list(rows[at : at + 1]) for at in range(min(len(rows), _MANY))]
    whole = [rows[number % len(rows)] for number in range(_MANY)]
    with _workers(directories) as workers:
        one: list[list[float]] = [[] for _ in workers]
        many: list[list[float]] = [[] for _ in workers]
        memory = [
            int(_ask(worker, directory, None)) for worker, directory in zip(workers, directories, strict=True)
        ]
        for number in range(_WARMUP + _ROUNDS):
            for place, (worker, directory) in enumerate(zip(workers, directories, strict=True)):
                singles = _ask(worker, directory, batches)
                together = _ask(worker, directory, [whole] * 2)
                if number >= _WARMUP:
                    one[place] += singles
                    many[place] += together
        memory = [
            max(before, int(_ask(worker, directory, None)))
            for before, worker, directory in zip(memory, workers, directories, strict=True)
        ]
    return [Timing(median(a), median(b), c) for a, b, c in zip(one, many, memory, strict=True)]


@contextmanager
def _workers(directories: Sequence[Path]) -> Iterator[list[Connection]]:
    start_server()
    context: Any = multiprocessing.get_context(START_METHOD)
    processes, pipes = [], []
    try:
        for directory in directories:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(directory, theirs), daemon=True)
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


def _ask(worker: Connection, directory: Path, batches: Any) -> Any:
    answer: Any = None
    with suppress(OSError):
        worker.send(batches)  # who has failed no longer listens, but has said why
    with suppress(EOFError, OSError):
        answer = worker.recv() if worker.poll(_START_SECONDS) else None
    if answer is None or isinstance(answer, str):
        raise ModelError(
            f"the model in {directory.name} could not be timed: {answer or 'its process died'}",
            "run again; if it happens again, leave that recipe out",
        )
    return answer


def _serve(directory: Path, pipe: Connection) -> None:
    """Open the model; then answer None with its memory, and batches with the seconds of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from tutti.package import open_package

    with suppress(ImportError):
        import onnxruntime  # noqa: F401 - libraries are no part of a model's memory
    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_full_info().uss
    try:
        asker = open_package(directory)
    except Exception as error:
        pipe.send(str(error))
        return
    with torch.no_grad(), suppress(EOFError):
        while True:
            batches = pipe.recv()
            if batches is None:
                pipe.send(max(0, process.memory_full_info().uss - before))
                continue
            seconds = []
            for rows in batches:
                began = time.perf_counter()
                asker.objective(asker.task.batch(rows, asker.encoder.pad))
                seconds.append(time.perf_counter() - began)
            pipe.send(seconds)
