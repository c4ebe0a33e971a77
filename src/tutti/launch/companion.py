"""A process beside the replicas that all of them need: started before them, started again when it dies, ended last."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult

from tutti.launch.agent import ReplicaAgent

#: How long it may take to end once the replicas have.
_END_SECONDS = 10.0


@dataclass
class Companion:
    """Runs `entry(argument)`, called `name` in events and messages.

    `on_restart(attempt, reason)` is told of its deaths, `is_fatal()` says whether it would only die again.
    """

    name: str
    entry: Callable[[Any], None]
    argument: Any
    max_restarts: int
    on_restart: Callable[[int, str], None]
    is_fatal: Callable[[], bool]
    #: Why it was given up.
    failure: str = ""
    _over: bool = False
    _agent: ReplicaAgent | None = None
    _thread: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it and watch over it in a thread."""
        self._agent = self._make_agent()
        self._thread = threading.Thread(target=self._attend, name=f"agent-{self.name}", daemon=True)
        self._thread.start()

    def _make_agent(self) -> ReplicaAgent:
        return ReplicaAgent(
            name=self.name,
            processes=1,
            entry=self.entry,
            arguments=(self.argument,),
            max_restarts=self.max_restarts,
            on_restart=lambda attempt, reason: self.on_restart(attempt, self._words(reason)),
            is_fatal=lambda: self._over or self.is_fatal(),
        )

    def pids(self) -> list[int]:
        """Its process, if it has one."""
        return self._agent.pids() if self._agent is not None else []

    def end(self) -> None:
        """Nobody needs it any more: it is asked to end, then made to."""
        self._over = True
        deadline = time.monotonic() + _END_SECONDS
        while self._thread is not None and self._thread.is_alive():
            self._tell(signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            self._thread.join(0.2)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _attend(self) -> None:
        assert self._agent is not None
        try:
            try:
                result = self._agent.run()
            except (ConnectionError, EOFError) as error:
                # What processes are forked from was killed, and they left with it.
                self.on_restart(1, f"what {self.name} was forked from is gone ({type(error).__name__})")
                self._agent.close()
                self._agent = self._make_agent()
                result = self._agent.run()
            if not self._over and (not isinstance(result, RunResult) or result.is_failed()):
                self.failure = self._words(self._agent.reason)
        except BaseException as error:
            self.failure = f"{self.name} could not be started: {type(error).__name__}: {error}"
        finally:
            self._agent.close()

    def _words(self, reason: str) -> str:
        return reason.replace("worker 0", self.name).replace("the workers", self.name)


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this machine, called `host`, that nobody listens at now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
