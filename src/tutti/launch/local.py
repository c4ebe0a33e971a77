"""All workers of a run on this machine.

Fixed membership: one agent holds every rank, because torch.distributed restarts as one. Elastic membership: one
agent a replica, so that a dead replica comes back while the others go on; they meet at a lighthouse (`meeting`), or
at a server beside them, which tells them who is alive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult

from tutti.core.events import EventWriter, read_events
from tutti.core.files import is_full
from tutti.core.live import LiveSign
from tutti.launch.agent import ReplicaAgent, hidden_main
from tutti.launch.companion import Companion
from tutti.launch.meeting import Meeting
from tutti.launch.server import start_server
from tutti.launch.signals import stop_requests

#: The launcher's own number among the events' ranks.
LAUNCHER_RANK = -1


@dataclass
class Outcome:
    """How it ended: whether every agent was content, whether somebody asked for a stop, and who died of what."""

    succeeded: bool
    stopped: bool
    reason: str = ""


@dataclass
class LocalLaunch:
    """Starts `replicas` × `parts` workers that call `entry(assignment(replica))` and sees them through.

    `assignment(replica, meeting)` makes what a worker is told: with elastic membership for each replica, else once
    with None and None. `meeting`: where replicas that come and go meet, for as long as they do (None: their membership
    is fixed). `here`: those that start on this machine, if not all do.
    """

    run: Path
    replicas: int
    parts: int
    meeting: AbstractContextManager[Meeting] | None
    max_restarts: int
    min_replicas: int
    entry: Callable[[Any], None]
    assignment: Callable[[int | None, Meeting | None], Any]
    here: Sequence[int] | None = None
    #: Whether to stop is to leave others, who go on.
    guest: bool = False
    #: What runs beside the replicas (entry, argument) and is their membership as well: no lighthouse then.
    server: tuple[Callable[[Any], None], Any] | None = None
    _companion: Companion | None = None
    _agents: list[ReplicaAgent] = field(default_factory=list)
    _make_agent: list[Callable[[], ReplicaAgent]] = field(default_factory=list)
    _results: dict[int, RunResult | BaseException] = field(default_factory=dict)
    _stopped: bool = False
    _told: set[int] = field(default_factory=set)
    #: Replicas that were given up when it was last asked whether the others can go on, and the answer.
    _judged: int = 0
    _hopeless: bool = False

    def execute(self, meanwhile: Callable[[], None]) -> Outcome:
        """Run to the end; `meanwhile` is called a few times a second in this thread.

        SIGTERM or Ctrl-C asks the workers to save and stop; a second one kills them.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(stop_requests(self.stop))  # also while workers are only being started
            start_server()
            self._events = EventWriter(self.run / "events", LAUNCHER_RANK)
            self._began = time.time()
            stack.callback(self._events.close)
            stack.enter_context(_sign_of_life(self.run / "live"))
            meeting = stack.enter_context(self.meeting) if self.meeting is not None else None
            stack.callback(self._end_companion)
            numbers: list[int | None] = [*self._here()] if self.elastic else [None]
            for number in numbers:
                assigned = self.assignment(number, meeting)
                self._make_agent.append(partial(self._agent, number, assigned))
                self._agents.append(self._agent(number, assigned))
            threads = [
                threading.Thread(target=self._attend, args=(index,), name=f"agent-{index}", daemon=True)
                for index in range(len(self._agents))
            ]
            with hidden_main():
                self._start_companion()
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    with contextlib.suppress(OSError):  # a full disk is the workers' to report
                        meanwhile()
                    if self.elastic and self._too_few():
                        # They would wait for each other for ever; the last checkpoint has their state.
                        self._tell(signal.SIGKILL)
                    if self._stopped:
                        self._tell(self._farewell)  # workers that were only being started had not heard it
                    if self._companion is not None and self._companion.failure:
                        self._tell(signal.SIGKILL)  # nobody can go on without it
                    threads[0].join(timeout=0.1) if threads[0].is_alive() else time.sleep(0.1)
            with contextlib.suppress(OSError):
                meanwhile()
        return Outcome(self._succeeded(), self._stopped, "; ".join(self._reasons()))

    def stop(self) -> None:
        """Ask the workers to save and stop; asked again, kill them. May be called from any thread."""
        second = self._stopped
        self._stopped = True
        self._tell(signal.SIGKILL if second else self._farewell)

    def kill(self, pid: int) -> None:
        """End a worker that shows no sign of life; its agent starts it again."""
        if any(pid in agent.pids() for agent in self._everybody()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked for a stop."""
        return self._stopped

    @property
    def elastic(self) -> bool:
        """Whether replicas come and go."""
        return self.meeting is not None

    def pids(self, replica: int) -> list[int]:
        """Process ids of the workers of `replica` that were started last; none before they are."""
        if self.elastic:
            place = self._here().index(replica) if replica in self._here() else len(self._agents)
            return self._agents[place].pids() if place < len(self._agents) else []
        everybody = self._agents[0].pids() if self._agents else []
        return everybody[replica * self.parts : (replica + 1) * self.parts]

    # Agents --------------------------------------------------------------------------------------------------

    def _agent(self, replica: int | None, assigned: Any) -> ReplicaAgent:
        def on_restart(attempt: int, reason: str) -> None:
            who = "" if replica is None else f"replica {replica}: "
            self._events.write("restart", attempt=attempt, reason=who + reason, of_replica=replica)

        return ReplicaAgent(
            name="run" if replica is None else f"replica-{replica}",
            processes=self.replicas * self.parts if replica is None else self.parts,
            entry=self.entry,
            arguments=(assigned,),
            max_restarts=self.max_restarts,
            on_restart=on_restart,
            is_fatal=lambda: (
                self._stopped
                or any(companion.failure for companion in self._beside())
                or (self.elastic and self._too_few())
                or self._has_fatal_error(replica)
                or is_full(self.run)
            ),
        )

    def _here(self) -> Sequence[int]:
        return range(self.replicas) if self.here is None else self.here

    @property
    def _farewell(self) -> signal.Signals:
        """Workers that are asked to stop take all others with them; a guest's have nothing that the others lack."""
        return signal.SIGKILL if self.guest else signal.SIGTERM

    def _end_companion(self) -> None:
        if self._companion is not None:
            self._companion.end()

    def _start_companion(self) -> None:
        if self.server is None:
            return
        entry, argument = self.server

        def on_restart(attempt: int, reason: str) -> None:
            self._events.write("restart", attempt=attempt, reason=reason, of_replica=-1)

        self._companion = Companion(
            name="the server",
            entry=entry,
            argument=argument,
            max_restarts=self.max_restarts,
            on_restart=on_restart,
            is_fatal=lambda: self._has_fatal_error(-1) or is_full(self.run),
        )
        self._companion.start()

    def _everybody(self) -> list[ReplicaAgent | Companion]:
        return [*self._agents, *self._beside()]

    def _beside(self) -> list[Companion]:
        return [] if self._companion is None else [self._companion]

    def _attend(self, index: int) -> None:
        try:
            try:
                self._results[index] = self._agents[index].run()
            except (ConnectionError, EOFError) as error:
                # The server that workers are forked from was killed (it may look idle to whoever cleans up).
                # Its workers leave with it, and another one is started with the next agent.
                reason = f"the server that workers are forked from is gone ({type(error).__name__})"
                self._events.write("restart", attempt=1, reason=reason, of_replica=None)
                self._agents[index].close()
                self._agents[index] = self._make_agent[index]()
                self._results[index] = self._agents[index].run()
        except BaseException as error:
            self._results[index] = error
        finally:
            self._agents[index].close()

    def _succeeded(self) -> bool:
        """Fixed: all of it; elastic: as many replicas as a round needs."""
        good = [r for r in self._results.values() if isinstance(r, RunResult) and not r.is_failed()]
        return len(good) >= (min(self.min_replicas, len(self._here())) if self.elastic else 1)

    def _too_few(self) -> bool:
        """Whether so many replicas were given up that the others can never meet again, or one that could not begin,
        for a reason that the others will meet as well."""
        failed = sum(not isinstance(r, RunResult) or r.is_failed() for r in list(self._results.values()))
        if failed > self._judged:  # all events are read for that: once for each
            self._judged = failed
            self._hopeless = self.replicas - failed < self.min_replicas or self._could_not_begin()
        return self._hopeless

    def _could_not_begin(self) -> bool:
        return any(
            event.get("user") and not event.get("step")
            for event in read_events(self.run, "error")
            if event["time"] >= self._began
        )

    def _reasons(self) -> list[str]:
        """Why each agent that gave up did."""
        reasons = [companion.failure for companion in self._beside() if companion.failure]
        for index, agent in enumerate(self._agents):
            result = self._results.get(index)
            if not isinstance(result, RunResult):
                reasons.append(f"its workers could not be started: {type(result).__name__}: {result}")
            elif result.is_failed():
                reasons.append(agent.reason)
        return reasons

    def _has_fatal_error(self, replica: int | None) -> bool:
        """Whether a worker left an error that is more than the loss of a peer."""
        return any(
            not event.get("peer")
            for event in read_events(self.run, "error")
            if event["time"] >= self._began and (replica is None or event.get("replica") == replica)
        )

    # Signals -------------------------------------------------------------------------------------------------

    def _tell(self, number: signal.Signals) -> None:
        """Send `number` to every worker; each is asked only once to stop."""
        for agent in self._everybody():
            for pid in agent.pids():
                if number != signal.SIGTERM or pid not in self._told:
                    self._told.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)


@contextlib.contextmanager
def _sign_of_life(directory: Path) -> Iterator[None]:
    """Inside, `launcher.json` says that the workers are seen to, also while the only one of them hangs."""
    try:
        with LiveSign(directory, LAUNCHER_RANK, name="launcher"):
            yield
    finally:
        (directory / "launcher.json").unlink(missing_ok=True)
