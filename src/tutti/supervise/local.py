"""One run on this machine, from its first process to its report."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutti.config import dump_config
from tutti.core import errors
from tutti.core.address import bracketed
from tutti.core.errors import LaunchError, RunError, TrainingError, TuttiError
from tutti.core.events import EventWriter, read_events
from tutti.core.files import is_full, write_text_atomically
from tutti.core.hold import held
from tutti.core.live import clear_signs
from tutti.core.rundir import RunDirectory, unwritable
from tutti.disturb.trouble import Trouble
from tutti.launch.companion import free_port
from tutti.launch.local import LAUNCHER_RANK, LocalLaunch, Outcome
from tutti.launch.meeting import Meeting, meeting_here
from tutti.observe import summarise_errors, write_report
from tutti.resolve import Resolved
from tutti.supervise.beside import Show, say_launched, stall_check, tracked
from tutti.supervise.door import Door
from tutti.supervise.measured import candidate, decide, measuring
from tutti.supervise.reception import Reception
from tutti.sync.channel import new_secret
from tutti.sync.server import ServerAddress
from tutti.train.cooperate import Neighbours
from tutti.train.profiler import Profiling
from tutti.train.rank import Assignment
from tutti.train.replicas import Elastic
from tutti.train.server import ServerAssignment
from tutti.train.server import main as server_main
from tutti.train.worker import main as worker_main


@dataclass
class Supervision:
    """One run on this machine. `prepared` None: the job of `tutti.fit` lies in the run directory already.

    `trouble`: how the run is disturbed on purpose. `reception`: how replicas on other machines join. `neighbours`: the
    groups that this run is one of; `ranks_before`: workers of other runs on this machine, which come first where
    devices are given out; `label`: what the lines that it prints begin with. `profiling`: the steps that the run is
    for; between replicas links and codecs are measured before them, whatever `sync` says.
    """

    run: RunDirectory
    resolved: Resolved
    prepared: Path | None
    resume: bool
    console: bool
    trouble: Trouble | None = None
    neighbours: Neighbours | None = None
    label: str = ""
    reception: Reception | None = None
    ranks_before: int = 0
    profiling: Profiling | None = None
    _secret: bytes = field(default_factory=new_secret, init=False)
    #: Policy `server`: where it will listen.
    _server: ServerAddress | None = None
    _launched: LocalLaunch | None = None

    def stop(self) -> None:
        """Ask the workers to save and stop; asked again, kill them. Before there is a launch, nothing happens."""
        if self._launched is not None:
            self._launched.stop()

    @property
    def launched(self) -> bool:
        """Whether there is somebody to stop."""
        return self._launched is not None

    def execute(self) -> dict[str, Any]:
        """Run the workers to their end and return the report.

        Raises:
            TuttiError: the run failed, in the words of its first error.
        """
        with held(self.run.path, "training there"):
            began = time.time()
            former = self.run.config.read_text(encoding="utf-8") if self.resume else None
            events = self._begin()
            with tracked(self.run, self.resolved.config.trackers, began, self.label):
                return self._execute(events, began, former)

    def _execute(self, events: EventWriter, began: float, former: str | None) -> dict[str, Any]:
        """`former`: the configuration of a run that is resumed, as it was."""
        run = self.run
        with Show(run, self.console, began, self.label, self.resolved.config.alerts) as show:
            try:
                outcome = self._launch(events, began)
            except TuttiError:
                self._leave_nothing()
                if former is not None and not _begun(run, began):
                    write_text_atomically(run.config, former)
                events.close()
                raise
            failed = self._failed(outcome, began)
            if failed:
                reason = outcome.reason or "no worker said how it ended"
                show.give_up(reason)
                with suppress(OSError):  # a full disk
                    events.write("gave_up", reason=reason)
            elif not _ended(run, began):
                # The workers said nothing: they had nothing to save, or were not given the time to.
                killed = _last_step(run, began) is not None
                events.write("interrupted", trained=killed, killed=killed)
        events.close()
        if former is not None and not _begun(run, began):
            write_text_atomically(run.config, former)  # refused: the run is what it was
        try:
            report = write_report(run.path)
        except RunError as error:
            raise RunError(error.problem, self._go_on("mend that, then ")) from error
        if failed:
            raise self._failure(began, outcome.reason)
        return report

    def _failed(self, outcome: Outcome, began: float) -> bool:
        """Whether it came to no end, or, asked to stop, did not save what it was to save."""
        run, ended = self.run, _ended(self.run, began)
        if not outcome.stopped:
            # With members that may go, others may have ended well, and the one that was to hand on the model not.
            return not outcome.succeeded or not ended
        if ended or (last := _last_step(run, began)) is None:
            return False
        return is_full(run.path) or any(
            event["time"] >= last and not event.get("peer") for event in read_events(run.path, "error")
        )

    def _begin(self) -> EventWriter:
        """Write the configuration and the first event: wall time counts from here."""
        run = self.run
        try:
            write_text_atomically(run.config, dump_config(self.resolved.config))
            clear_signs(run.live)
            events = EventWriter(run.events, LAUNCHER_RANK)
            say_launched(events, self.resume)
        except OSError as error:
            if not self.resume:
                shutil.rmtree(run.path, ignore_errors=True)
            raise unwritable(run.path, error) from error
        return events

    def _launch(self, events: EventWriter, began: float) -> Outcome:
        """Measure first, where that decides how replicas agree; then train."""
        with self._open_door(events) as door:
            undecided = self.resolved.config.sync.undecided
            if undecided or self.measures_links:
                if self.console and undecided:
                    print("sync: auto: measuring steps, links and codecs before the run", flush=True)
                elastic = candidate(self.resolved).membership == "elastic"
                meeting = self._meeting(door, measure=True) if elastic else None
                measure = measuring(
                    self.run, self.resolved, self._assignment, meeting=meeting, here=self._here
                )
                outcome = self._see_through(measure, events)
                if outcome.stopped:
                    return replace(outcome, succeeded=False)
                if undecided and not decide(self.run, self.resolved, began, elsewhere=door is not None):
                    return replace(outcome, succeeded=False)
                clear_signs(self.run.live)
            launch = self._training(door)
            with self.trouble.around(launch, began, events) if self.trouble else nullcontext():
                return self._see_through(launch, events)

    def _training(self, door: Door | None) -> LocalLaunch:
        config = self.resolved.config
        served = config.sync.policy == "server"
        host = self.reception.host if self.reception is not None else "127.0.0.1"
        if served:
            self._server = ServerAddress(f"tcp://{bracketed(host)}:{free_port(host)}", new_secret())
        elastic = served or (config.sync.membership == "elastic" and _number(config.replicas) > 1)
        return LocalLaunch(
            run=self.run.path,
            replicas=_number(config.replicas),
            here=self._here,
            parts=config.layout.ranks,
            meeting=self._meeting(door) if elastic else None,
            max_restarts=config.watch.max_restarts,
            min_replicas=config.sync.min_replicas,
            entry=worker_main,
            assignment=self._assignment,
            server=(server_main, self._server_assignment(self._server)) if self._server else None,
        )

    def _see_through(self, launch: LocalLaunch, events: EventWriter) -> Outcome:
        self._launched = launch
        look = stall_check(self.run, self.resolved.config, events, launch.kill)
        return launch.execute(_at_most_every(1.0, look))

    @property
    def measures_links(self) -> bool:
        """Whether links and codecs are measured for the profile that this run is for."""
        config = self.resolved.config
        return self.profiling is not None and config.replicas != 1 and config.sync.policy != "server"

    @property
    def _here(self) -> Sequence[int] | None:
        return range(self.reception.here) if self.reception is not None else None

    def _open_door(self, events: EventWriter) -> AbstractContextManager[Door | None]:
        if self.reception is None:
            return nullcontext()
        assert self.prepared is not None, "tutti.fit has no reception"
        return self.reception.door(self.run, self.resolved.config, self.prepared, events.write)

    def _meeting(self, door: Door | None, *, measure: bool = False) -> AbstractContextManager[Meeting]:
        config = self.resolved.config
        if self.reception is None or door is None or self.prepared is None:
            # Who measures must not wait for the dead, but say that somebody is missing.
            fewest = 1 if measure else config.sync.min_replicas
            return meeting_here("localhost", lighthouse=self._server is None, min_replicas=fewest)
        return self.reception.meeting(
            door, config, self._secret, prepared=self.prepared, server=self._server, measure=measure
        )

    def _assignment(self, replica: int | None, meeting: Meeting | None) -> Assignment:
        elastic = None
        if replica is not None and meeting is not None:
            host = self.reception.host if self.reception is not None else "localhost"
            elastic = Elastic(
                replica, meeting.lighthouse, meeting.store, self._secret, host=host, server=self._server
            )
        return Assignment(
            run=self.run.path.absolute(),
            prepared=self.prepared,
            threads=self.resolved.threads,
            resume=self.resume,
            elastic=elastic,
            launcher_pid=os.getpid(),
            choices=tuple(self.resolved.choices),
            neighbours=self.neighbours,
            ranks_before=self.ranks_before,
            profiling=self.profiling,
        )

    def _server_assignment(self, address: ServerAddress) -> ServerAssignment:
        return ServerAssignment(self.run.path.absolute(), address, self.resolved.threads, os.getpid())

    def _failure(self, began: float, reason: str) -> TuttiError:
        """The run's first error; one that the user can mend before step 1 takes the directory with it."""
        if is_full(self.run.path):  # the workers could not even write what went wrong
            problem = unwritable(self.run.path, OSError(errno.ENOSPC, "")).problem
            return RunError(problem, self._go_on("free some space, then "))
        causes = [e for e in read_events(self.run.path, "error") if e["time"] >= began and not e.get("peer")]
        cause = min(causes, key=lambda event: (not event.get("here", True), event["time"]), default=None)
        if cause is None and self.resolved.config.sync.undecided:
            return LaunchError(
                f"not all workers could measure for sync: auto ({reason})",
                "say what to take, for example sync=allreduce sync.codec=bf16, or try again: "
                + self._go_on(),
            )
        if cause is None:  # only the dead one knew why; its peers lost their connection
            most = self.resolved.config.watch.max_restarts
            spent = f", and watch.max_restarts = {most} is used up" if most else ""
            return LaunchError(reason + spent, self._go_on())
        if not cause.get("user"):
            return LaunchError(summarise_errors(self.run.path, began) or reason, self._go_on())
        self._leave_nothing()
        kind = getattr(errors, str(cause["type"]), TrainingError)
        made: TuttiError = kind(cause["message"], cause["hint"])
        return made

    def _leave_nothing(self) -> None:
        """Of a run that failed before its first step."""
        if not self.resume and not any(True for _ in read_events(self.run.path, "step")):
            shutil.rmtree(self.run.path, ignore_errors=True)

    def _go_on(self, first: str = "") -> str:
        return f"{first}`tutti train … --resume` goes on from the last checkpoint of {self.run.path}"


def _begun(run: RunDirectory, since: float) -> bool:
    """Whether the workers came so far as to train."""
    return any(event["time"] >= since for event in read_events(run.path, "run_started"))


def _ended(run: RunDirectory, since: float) -> bool:
    """Whether the workers said how it ended."""
    return any(
        event["time"] >= since
        for kind in ("finished", "interrupted")
        for event in read_events(run.path, kind)
    )


def _last_step(run: RunDirectory, since: float) -> float | None:
    """When the last step was made; None: none was."""
    return max((e["time"] for e in read_events(run.path, "step") if e["time"] >= since), default=None)


def _number(value: int | str) -> int:
    assert not isinstance(value, str), "resolve() leaves no auto"
    return value


def _at_most_every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    last = 0.0

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            action()

    return maybe
