"""Work that is shared out to processes of this machine: tasks in, answers out, as they come.

A process is `python -m tutti.data.worker`: a plain process instead of `multiprocessing`, which would run the user's
main module again, or fork beside the threads of the tokenizer.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, Protocol, cast

from tutti.core.errors import DataError


class Job(Protocol):
    """What all tasks share; it is sent to every process once."""

    def start(self) -> Callable[[Any], Any]:
        """Make ready; what is returned turns a task into its answer."""


def share_out(job: Job, tasks: Iterable[Any], processes: int) -> Iterator[tuple[Any, Any]]:
    """(task, answer) as they are done: here, in order, or with `processes` above 1 in so many, in any order.

    Raises:
        TuttiError: as the job does; also a process that died.
    """
    if processes > 1:
        yield from _in_processes(job, iter(tasks), processes)
        return
    perform = job.start()
    for task in tasks:
        yield task, perform(task)


def _in_processes(job: Job, tasks: Iterator[Any], processes: int) -> Iterator[tuple[Any, Any]]:
    """One thread per process hands out tasks and collects answers; the first error ends them all."""
    lock = threading.Lock()
    answers: queue.Queue[tuple[Any, Any] | BaseException | None] = queue.Queue()

    def attend(helper: _Helper) -> None:
        try:
            helper.send(job)
            while True:
                with lock:
                    task = next(tasks, None)
                if task is None:
                    break
                answers.put((task, helper.ask(task)))
            answers.put(None)
        except BaseException as error:
            answers.put(error)

    helpers = [_Helper() for _ in range(processes)]
    threads = [threading.Thread(target=attend, args=(helper,), daemon=True) for helper in helpers]
    try:
        for thread in threads:
            thread.start()
        running = processes
        while running:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                running -= 1
            else:
                yield answer
    finally:
        for helper in helpers:
            helper.kill()  # their threads meet the end of the stream and stop
        for thread in threads:
            thread.join(timeout=10)
        for helper in helpers:
            helper.close()


class _Helper:
    """One worker process."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",  # the processes are the parallelism
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tutti.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )

    def ask(self, task: Any) -> Any:
        self.send(task)
        try:
            answer = pickle.load(cast(IO[bytes], self._process.stdout))
        except (EOFError, pickle.UnpicklingError):  # died before or in the midst of its answer
            raise self._died() from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def send(self, message: object) -> None:
        stream = cast(IO[bytes], self._process.stdin)
        try:
            pickle.dump(message, stream)
            stream.flush()
        except BrokenPipeError:
            raise self._died() from None

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(OSError):
                    stream.close()
        self._log.close()

    def _died(self) -> Exception:
        code = self._process.wait()
        if code < 0:
            return DataError(
                f"a process that was writing shards was killed by signal {-code}",
                "run again: finished shards are kept (was memory short? then with fewer workers)",
            )
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip()
        return RuntimeError(f"a process that was writing shards failed:\n{text[-4000:]}")
