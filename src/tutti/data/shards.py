"""All shards of a preparation, written by this process or by several at once.

Shards that an earlier, interrupted attempt finished are taken as they are, once their hashes agree.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, cast

from tutti.core.errors import DataError
from tutti.data.encode import Job, ShardTask, encode_shard, find_finished
from tutti.data.encoder import TextEncoder
from tutti.data.listing import SourceFile
from tutti.data.manifest import Shard
from tutti.data.segments import PlanOfPart
from tutti.data.settings import BYTES_WORTH_PROCESSES


def write_shards(
    job: Job,
    plan: dict[str, PlanOfPart],
    files: list[SourceFile],
    *,
    workers: int,
    say: Callable[[str], None],
) -> dict[str, list[Shard]]:
    """Write what is not there yet; all shards of every part, in order.

    Raises:
        DataError, RunError: as `encode_shard`; also a worker process that died.
    """
    done: dict[str, Shard] = {}
    pending: list[tuple[PlanOfPart, int]] = []
    names = {
        part.name: [f"{part.name}-{shard:05d}" for shard in range(part.shards)] for part in plan.values()
    }
    for part in plan.values():
        for number, name in enumerate(names[part.name]):
            finished = find_finished(job, name, part.digest(number))
            if finished:
                done[name] = finished
            else:
                pending.append((part, number))
    total = len(done) + len(pending)
    if done:
        say(f"{len(done)} of {total} shards were finished before")
    tasks = (ShardTask.of(part, number, files) for part, number in pending)
    left = sum(int(part.segments["bytes"][part.bounds[n] : part.bounds[n + 1]].sum()) for part, n in pending)
    processes = min(workers, len(pending)) if left >= BYTES_WORTH_PROCESSES and _reachable(files) else 1
    results = _in_processes(job, tasks, processes) if processes > 1 else _here(job, tasks)
    for name, shard in results:
        done[name] = shard
        megabytes = shard.bytes / 1e6
        say(f"wrote {name}: {shard.tokens:,} tokens from {megabytes:.1f} MB ({len(done)} of {total} shards)")
    return {part: [done[name] for name in of_part] for part, of_part in names.items()}


def _reachable(files: Sequence[SourceFile]) -> bool:
    """Whether another process sees the same files."""
    return not any(file.name.startswith("memory://") for file in files)


def _here(job: Job, tasks: Iterable[ShardTask]) -> Iterator[tuple[str, Shard]]:
    encoder = TextEncoder(job.tokenizer)
    for task in tasks:
        yield task.name, encode_shard(job, task, encoder)


def _in_processes(job: Job, tasks: Iterator[ShardTask], processes: int) -> Iterator[tuple[str, Shard]]:
    """One thread per process hands out tasks and collects answers; the first error ends them all."""
    lock = threading.Lock()
    answers: queue.Queue[tuple[str, Shard] | BaseException | None] = queue.Queue()

    def attend(helper: _Helper) -> None:
        try:
            helper.send(job)
            while True:
                with lock:
                    task = next(tasks, None)
                if task is None:
                    break
                answers.put((task.name, helper.ask(task)))
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

    def ask(self, task: ShardTask) -> Shard:
        self.send(task)
        try:
            answer = pickle.load(cast(IO[bytes], self._process.stdout))
        except (EOFError, pickle.UnpicklingError):  # died before or in the midst of its answer
            raise self._died() from None
        if isinstance(answer, BaseException):
            raise answer
        return cast(Shard, answer)

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
