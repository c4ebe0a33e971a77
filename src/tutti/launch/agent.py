"""One replica's processes under torch elastic: they live and die together, and are started again together.

torch elastic starts, watches and restarts. Added here: what died is written into the run's events, and a
failure that would only repeat itself (an error of the user, a bug) is not tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from tutti.launch.alone import AloneRendezvous
from tutti.launch.server import START_METHOD

_MONITOR_SECONDS = 0.1
#: How long a worker that was told to end may take before it is killed.
_SHUTDOWN_SECONDS = 10


class ReplicaAgent(LocalElasticAgent):
    """Runs `entry(*arguments)` in `processes` processes; restarts them all when one dies by a signal or a lost peer.

    `on_restart(attempt, reason)` is told before each restart; `is_fatal()` says whether what happened would
    only happen again.
    """

    def __init__(
        self,
        *,
        name: str,
        processes: int,
        entry: Callable[..., None],
        arguments: tuple[Any, ...],
        max_restarts: int,
        on_restart: Callable[[int, str], None],
        is_fatal: Callable[[], bool],
    ) -> None:
        # Elastic narrates; the run's events say it in the user's words.
        for logger in ("torch.distributed.elastic", "torch.distributed.run", "torch.multiprocessing.spawn"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        spec = WorkerSpec(
            role=name,
            local_world_size=processes,
            entrypoint=entry,
            args=arguments,
            rdzv_handler=AloneRendezvous(f"{name}-{os.getpid()}-{id(self)}"),
            max_restarts=max_restarts,
            monitor_interval=_MONITOR_SECONDS,
            local_addr="localhost",
        )
        # Elastic's own, which else would stay in the machine's /tmp of every run for good.
        self._files = tempfile.TemporaryDirectory(prefix="tutti-elastic-", ignore_cleanup_errors=True)
        super().__init__(
            spec,
            DefaultLogsSpecs(self._files.name),
            START_METHOD,
            exit_barrier_timeout=30,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        self._max_restarts = max_restarts
        self._on_restart = on_restart
        self._is_fatal = is_fatal
        #: Who died last, and of what.
        self.reason = "the workers died"

    def pids(self) -> list[int]:
        """Process ids of the workers that were started last."""
        return list(self._pcontext.pids().values()) if self._pcontext is not None else []

    def close(self) -> None:
        """Remove its files."""
        self._files.cleanup()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            self.reason = self._why(result)
            if self._is_fatal():
                self._remaining_restarts = 0
        return result

    def _why(self, result: RunResult) -> str:
        """Who died, and of what; a death by a signal comes first, for the others only lost their peer.

        Elastic names the first process that it found dead, which is often one of the others, and ends the
        rest by SIGTERM.
        """
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        context = getattr(self._pcontext, "_pc", None)
        for rank, process in enumerate(context.processes if context is not None else ()):
            if process.exitcode is not None:
                codes[rank] = process.exitcode
        for rank, code in codes.items():
            if code < 0 and -code != signal.SIGTERM:
                name = signal.Signals(-code).name
                return f"worker {rank} was killed by {name}" + (
                    " (out of memory?)" if name == "SIGKILL" else ""
                )
        for rank, code in codes.items():
            if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
                return f"worker {rank} exited with {code}"
        return "the workers died"

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._on_restart(self._max_restarts - self._remaining_restarts, self.reason)
        super()._restart_workers(worker_group)


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep workers from running the user's script again.

    multiprocessing imports the script of `__main__` in every child, which starts a second training there unless
    it is guarded by `if __name__ == "__main__"`. Workers need nothing of it: cloudpickle carries its classes.
    The module itself stays as it is: `inspect`, and so whoever logs in another thread, fails on one without a file.
    """
    original = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        return {key: value for key, value in data.items() if not key.startswith("init_main_from")}

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original
