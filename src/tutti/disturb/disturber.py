"""Disturbs a run as scheduled, from a thread of the launcher, and writes into the run's events what it did.

    time 0          the run's first finished step
    kill            SIGKILL to all processes of the replica
    stop            SIGSTOP to them, SIGCONT after the stated time
    slow            both in turns: of every fifth of a second they run the stated part
    cut             the firewall drops what the replica sends and is sent

Only processes that the launcher's own server forked are ever touched. Whatever is going on when the run ends or is
asked to stop is undone at once: a stopped process could not even hear that it is to end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tutti.core.events import EventWriter
from tutti.disturb.firewall import Firewall
from tutti.disturb.guard import Guard
from tutti.disturb.schedule import Disturbance
from tutti.observe.tail import Tail, when

#: How finely time is cut for the schedule, and for a slowed replica: a fifth of a second in hundredths.
_TICK_SECONDS = 0.05
_SLOW_TICK_SECONDS, _SLOW_PERIOD_SECONDS = 0.005, 0.2

Processes = Callable[[int], list[psutil.Process]]


def own_workers(pids: list[int]) -> list[psutil.Process]:
    """Those of `pids` that run and were forked by a server that this process started."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            server = process.parent()
            if (
                server is not None
                and server.ppid() == os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


class _Action(ABC):
    """Something that lasts; `end` undoes it."""

    def tick(self, elapsed: float) -> None:  # noqa: B027 - most need no attention in between
        """`elapsed` seconds have passed since it began."""

    @abstractmethod
    def end(self) -> None:
        """As it was before."""


class _Stop(_Action):
    def __init__(self, processes: list[psutil.Process], guard: Guard) -> None:
        self._processes, self._guard = processes, guard
        for process in processes:
            guard.note(process.pid, stopped=True)
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(psutil.Error):  # it may have been killed meanwhile
                process.resume()
            self._guard.note(process.pid, stopped=False)


class _Slow(_Action):
    """A stop in every period; a replica that is started again meanwhile is as slow."""

    def __init__(self, processes: Callable[[], list[psutil.Process]], speed: float, guard: Guard) -> None:
        self._processes, self._speed, self._guard = processes, speed, guard
        self._stop: _Stop | None = None

    def tick(self, elapsed: float) -> None:
        stands = elapsed % _SLOW_PERIOD_SECONDS >= self._speed * _SLOW_PERIOD_SECONDS
        if stands and self._stop is None:
            self._stop = _Stop(self._processes(), self._guard)
        elif not stands:
            self.end()

    def end(self) -> None:
        if self._stop is not None:
            self._stop.end()
            self._stop = None


class _Cut(_Action):
    def __init__(self, firewall: Firewall, replica: int) -> None:
        self._firewall, self._replica = firewall, replica
        firewall.cut(replica)

    def end(self) -> None:
        self._firewall.mend(self._replica)


class Disturber:
    """Carries out `schedule` beside a run; a context manager around the launch."""

    def __init__(
        self,
        schedule: Iterator[Disturbance],
        *,
        run: Path,
        since: float,
        pids: Callable[[int], list[int]],
        stopping: Callable[[], bool],
        events: EventWriter,
        firewall: Firewall | None,
    ) -> None:
        """`since`: Unix time at which the run was launched; `pids`: the workers of a replica, as they are now."""
        self._schedule = schedule
        self._tail = Tail(run)
        self._since = since
        self._pids = pids
        self._stopping = stopping
        self._events = events
        self._firewall = firewall
        self._active: dict[int, tuple[Disturbance, float, _Action]] = {}
        self._number = 0
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def __enter__(self) -> Disturber:
        self._guard = Guard()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over.set()
        self._thread.join()
        self._guard.close()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            if self._wait_for_first_step():
                self._disturb(time.monotonic())
        except BaseException as error:
            self._error = error
        finally:
            for number in list(self._active):
                self._end(number)

    def _wait_for_first_step(self) -> bool:
        while not self._over.wait(_TICK_SECONDS):
            if any(event["kind"] == "step" and when(event) >= self._since for event in self._tail.poll()):
                return True
        return False

    def _disturb(self, began: float) -> None:
        coming = next(self._schedule, None)
        while not self._stopping() and (coming is not None or self._active):
            now = time.monotonic() - began
            while coming is not None and coming.at <= now:
                self._begin(coming, now)
                coming = next(self._schedule, None)
            for number, (disturbance, since, action) in list(self._active.items()):
                if now - since >= disturbance.seconds:
                    self._end(number)
                else:
                    action.tick(now - since)
            slow = any(disturbance.kind == "slow" for disturbance, _, _ in self._active.values())
            if self._over.wait(_SLOW_TICK_SECONDS if slow else _TICK_SECONDS):
                return

    def _begin(self, disturbance: Disturbance, now: float) -> None:
        number = self._number
        self._number += 1
        processes = own_workers(self._pids(disturbance.replica))
        reason = self._hindrance(disturbance, processes)
        self._note(number, disturbance, "skipped" if reason else "began", reason)
        if reason:
            return
        if disturbance.kind == "kill":
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return
        self._active[number] = (disturbance, now, self._act(disturbance, processes))

    def _act(self, disturbance: Disturbance, processes: list[psutil.Process]) -> _Action:
        replica = disturbance.replica
        if disturbance.kind == "stop":
            return _Stop(processes, self._guard)
        if disturbance.kind == "slow":
            return _Slow(lambda: own_workers(self._pids(replica)), disturbance.speed, self._guard)
        assert self._firewall is not None, "cuts are refused without one"
        return _Cut(self._firewall, replica)

    def _hindrance(self, disturbance: Disturbance, processes: list[psutil.Process]) -> str:
        """Why it cannot be done now; empty if it can."""
        if not processes:
            return "it is down"
        if disturbance.kind == "kill":
            return ""
        alike = ("cut",) if disturbance.kind == "cut" else ("stop", "slow")
        others = (d for d, _, _ in self._active.values() if d.replica == disturbance.replica)
        busy = next((other.kind for other in others if other.kind in alike), None)
        return f"its {busy} is not over" if busy else ""

    def _end(self, number: int) -> None:
        disturbance, _, action = self._active.pop(number)
        action.end()
        self._note(number, disturbance, "ended")

    def _note(self, number: int, disturbance: Disturbance, state: str, reason: str = "") -> None:
        with contextlib.suppress(OSError):  # a full disk is the workers' to report
            self._events.write(
                "disturbance",
                number=number,
                state=state,
                what=disturbance.kind,
                of_replica=disturbance.replica,
                planned_seconds=round(disturbance.at, 3),
                seconds=disturbance.seconds,
                speed=disturbance.speed,
                reason=reason,
            )
