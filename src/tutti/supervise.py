"""A run from its first process to its report: launch the workers, show them, watch them, sum them up."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tutti.config import Config, dump_config, load_config
from tutti.core import errors
from tutti.core.errors import LaunchError, RunError, TrainingError, TuttiError
from tutti.core.events import EventWriter, read_events
from tutti.core.files import is_full, write_text_atomically
from tutti.core.live import clear_signs
from tutti.core.rundir import RunDirectory, unwritable
from tutti.data import Prepared
from tutti.launch.local import LAUNCHER_RANK, LocalLaunch
from tutti.observe import TensorBoardTracker, Watchdog, follow, summarise_errors, write_report
from tutti.parallel import started_store
from tutti.resolve import Resolved
from tutti.train.replicas import Elastic
from tutti.train.worker import Assignment
from tutti.train.worker import main as worker_main


@dataclass
class Supervision:
    """One run on this machine. `prepared` None: the job of `tutti.fit` lies in the run directory already."""

    run: RunDirectory
    resolved: Resolved
    prepared: Path | None
    resume: bool
    console: bool

    def execute(self) -> dict[str, Any]:
        """Run the workers to their end and return the report.

        Raises:
            TuttiError: the run failed, in the words of its first error.
        """
        config, run = self.resolved.config, self.run
        began = time.time()
        former = run.config.read_text(encoding="utf-8") if self.resume else None
        events = self._begin()
        launch = LocalLaunch(
            run=run.path,
            replicas=_number(config.replicas),
            parts=config.layout.ranks,
            elastic=config.sync.policy != "allreduce" and _number(config.replicas) > 1,
            max_restarts=config.watch.max_restarts,
            min_replicas=config.sync.min_replicas,
            entry=worker_main,
            assignment=self._assignment,
        )
        with Show(run, self.console, began):
            look = _look(run, config, events, launch.kill)
            outcome = launch.execute(_at_most_every(1.0, look))
            if outcome.stopped and not _ended(run, began):
                # Asked to stop before the workers trained: they had nothing to save and said nothing.
                events.write("interrupted", trained=False)
        events.close()
        if former is not None and not _begun(run, began):
            write_text_atomically(run.config, former)  # refused: the run is what it was
        try:
            report = write_report(run.path)
        except RunError as error:
            raise RunError(error.problem, self._go_on("mend that, then ")) from error
        if not outcome.succeeded and not outcome.stopped:
            raise self._failure(began, outcome.reason)
        return report

    def _begin(self) -> EventWriter:
        """Write the configuration and the first event: wall time counts from here."""
        run = self.run
        try:
            write_text_atomically(run.config, dump_config(self.resolved.config))
            clear_signs(run.live)
            events = EventWriter(run.events, LAUNCHER_RANK)
            events.write("launched", resume=self.resume)
        except OSError as error:
            if not self.resume:
                shutil.rmtree(run.path, ignore_errors=True)
            raise unwritable(run.path, error) from error
        return events

    def _assignment(
        self, replica: int | None, lighthouse: str | None, store: tuple[str, int] | None
    ) -> Assignment:
        elastic = (
            Elastic(replica, lighthouse, store) if replica is not None and lighthouse and store else None
        )
        return Assignment(
            run=self.run.path.absolute(),
            prepared=self.prepared,
            threads=self.resolved.threads,
            resume=self.resume,
            elastic=elastic,
            launcher_pid=os.getpid(),
            choices=tuple(self.resolved.choices),
        )

    def _failure(self, began: float, reason: str) -> TuttiError:
        """The run's first error; one that the user can mend before step 1 takes the directory with it."""
        if is_full(self.run.path):  # the workers could not even write what went wrong
            problem = unwritable(self.run.path, OSError(errno.ENOSPC, "")).problem
            return RunError(problem, self._go_on("free some space, then "))
        causes = [e for e in read_events(self.run.path, "error") if e["time"] >= began and not e.get("peer")]
        cause = min(causes, key=lambda event: event["time"], default=None)
        if cause is None:  # only the dead one knew why; its peers lost their connection
            most = self.resolved.config.watch.max_restarts
            return LaunchError(f"{reason}, and watch.max_restarts = {most} is used up", self._go_on())
        if not cause.get("user"):
            return LaunchError(summarise_errors(self.run.path, began) or reason, self._go_on())
        if not self.resume and not any(True for _ in read_events(self.run.path, "step")):
            shutil.rmtree(self.run.path, ignore_errors=True)
        kind = getattr(errors, str(cause["type"]), TrainingError)
        made: TuttiError = kind(cause["message"], cause["hint"])
        return made

    def _go_on(self, first: str = "") -> str:
        return f"{first}`tutti train … --resume` goes on from the last checkpoint of {self.run.path}"


class Show:
    """Console and TensorBoard while a run goes on; both only read its events."""

    def __init__(self, run: RunDirectory, console: bool, since: float) -> None:
        self._stop = threading.Event()
        self._tracker = TensorBoardTracker(
            run.path, lambda message: print(message, file=sys.stderr), since=since
        )
        self._thread = threading.Thread(
            target=follow,
            args=(run.path, self._stop),
            kwargs={"interactive": sys.stdout.isatty(), "since": since},
            daemon=True,
            name="console",
        )
        self._console = console

    def __enter__(self) -> Show:
        self._tracker.start()
        if self._console:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Show what is left, and end."""
        self._stop.set()
        if self._console:
            self._thread.join(timeout=10)
        self._tracker.stop()


# A world that somebody else started (torchrun) ------------------------------------------------------------------

_CONFIG_KEY = "tutti/run"
#: The other ranks wait for rank 0 to prepare the text, however long that takes.
_PREPARE_TIMEOUT = timedelta(hours=24)


def in_started_world() -> bool:
    """Whether this process is a rank of a world that torchrun (or the like) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


Start = Callable[[Config, Callable[[str], None], int | None], tuple[Resolved, Prepared]]


def run_in_started_world(
    check: Callable[[], Config], run: RunDirectory, *, resume: bool, console: bool, start: Start
) -> dict[str, Any]:
    """Be one rank of a started world: rank 0 resolves every `auto` for all; each host prepares its text itself.

    `check`: makes sure that the run may start (or be resumed) and returns its configuration; called by rank 0.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    store = started_store()
    began = time.time()
    if rank == 0:
        try:
            wanted = load_config(run.config) if restarted and run.config.is_file() else check()
            resolved, prepared = start(wanted, print if console else _nothing, size)
            if not resume and not restarted:
                run.create()
            _write_config(run, resolved.config)
            if not restarted:
                _note_launch(run, resume)
        except TuttiError as error:
            store.set(_CONFIG_KEY, _packed(error))
            raise
        store.set(_CONFIG_KEY, _packed((resolved, prepared.directory)))
    else:
        store.wait([_CONFIG_KEY], _PREPARE_TIMEOUT)
        received = pickle.loads(base64.b64decode(store.get(_CONFIG_KEY)))
        if isinstance(received, TuttiError):
            raise SystemExit(2)  # rank 0 says why
        resolved, directory = received
        if not directory.is_dir() or not run.config.is_file():  # no disk shared with rank 0
            _, prepared = start(resolved.config, _nothing, size)
            run.path.mkdir(parents=True, exist_ok=True)
            _write_config(run, resolved.config)
            directory = prepared.directory
    directory = prepared.directory if rank == 0 else directory
    assignment = Assignment(
        run.path.absolute(), directory, resolved.threads, resume=resume, choices=tuple(resolved.choices)
    )
    if rank != 0:
        worker_main(assignment)
        return {}
    with Show(run, console, began) as show, _watching(run, resolved.config):

        def say_what_happened() -> None:
            show.stop()
            print(f"error: {summarise_errors(run.path, began)}", file=sys.stderr)

        worker_main(assignment, before_exit=say_what_happened)
    return write_report(run.path)


@contextlib.contextmanager
def _watching(run: RunDirectory, config: Config) -> Iterator[None]:
    """Name ranks that hang, from a thread of rank 0, and end those that can be reached; torchrun does the rest.

    Of ranks on other hosts it sees only those whose `live/` lies on a disk shared with this one.
    """
    one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    events = EventWriter(run.events, LAUNCHER_RANK)
    look = _look(run, config, events, _kill if one_host else _nothing)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            look()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        events.close()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# Small things -------------------------------------------------------------------------------------------------


def _packed(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _nothing(_: object) -> None:
    pass


def _look(
    run: RunDirectory, config: Config, events: EventWriter, kill: Callable[[int], None]
) -> Callable[[], None]:
    """What to call every second or so: it notes who hangs, and ends who has hung for too long."""
    watchdog = Watchdog(
        run.path,
        config.watch.stall_seconds,
        lambda event: events.write(
            "stalled" if event["kind"] == "stalled" else "recovered", **_fields(event)
        ),
    )

    def look() -> None:
        watchdog.poll()
        for stall in watchdog.stalls.values():
            if stall.seconds > config.watch.kill_after_seconds and stall.pid is not None:
                kill(stall.pid)

    return look


def _note_launch(run: RunDirectory, resume: bool) -> None:
    """Wall time counts from here; what was written before is of an earlier command."""
    events = EventWriter(run.events, LAUNCHER_RANK)
    events.write("launched", resume=resume)
    events.close()


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


def _write_config(run: RunDirectory, config: Config) -> None:
    try:
        write_text_atomically(run.config, dump_config(config))
    except OSError as error:
        raise unwritable(run.path, error) from error


def _number(value: int | str) -> int:
    assert not isinstance(value, str), "resolve() leaves no auto"
    return value


def _fields(event: dict[str, Any]) -> dict[str, Any]:
    """An observer's event without what the writer adds; the rank that it is about becomes `of_rank`."""
    return {
        ("of_rank" if key == "rank" else key): value
        for key, value in event.items()
        if key not in ("kind", "time")
    }


def _at_most_every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    last = 0.0

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            action()

    return maybe
