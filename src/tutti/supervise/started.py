"""A run in a world that somebody else started (torchrun): this process is one of its ranks."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psutil

from tutti.config import Config, dump_config, load_config
from tutti.core.errors import TuttiError
from tutti.core.events import EventWriter
from tutti.core.files import write_text_atomically
from tutti.core.hold import held
from tutti.core.live import clear_signs
from tutti.core.rundir import RunDirectory, unwritable
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples
from tutti.hardware import usable_cores
from tutti.launch.local import LAUNCHER_RANK
from tutti.observe import summarise_errors, write_report
from tutti.parallel import started_store
from tutti.resolve import Resolved
from tutti.supervise.beside import Show, say_launched, stall_check, tracked
from tutti.train.rank import Assignment
from tutti.train.worker import main as worker_main

_CONFIG_KEY = "tutti/run"
#: The other ranks wait for rank 0 to prepare the text, however long that takes.
_PREPARE_TIMEOUT = timedelta(hours=24)

Start = Callable[[Config, Callable[[str], None], int | None], tuple[Resolved, Prepared | PreparedExamples]]


def in_started_world() -> bool:
    """Whether this process is a rank of a world that torchrun (or the like) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


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
            clear_signs(run.live)  # of an earlier world: its ranks are not ours, nor are its process ids
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
        run.path.absolute(), directory, _threads(), resume=resume, choices=tuple(resolved.choices)
    )
    if rank != 0:
        worker_main(assignment)
        return {}
    with tracked(run, resolved.config.trackers, began) as trackers:
        with (
            held(run.path, "training there"),
            Show(run, console, began, alerts=resolved.config.alerts) as show,
            _watching(run, resolved.config),
        ):

            def say_what_happened() -> None:
                show.stop()
                trackers.end()
                print(f"error: {summarise_errors(run.path, began)}", file=sys.stderr)

            worker_main(assignment, before_exit=say_what_happened)
        return write_report(run.path)


def _threads() -> int:
    """Of this rank: an even share of its own host's cores, whatever other hosts have."""
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"]
    return max(1, usable_cores() // int(here))


@contextlib.contextmanager
def _watching(run: RunDirectory, config: Config) -> Iterator[None]:
    """Name ranks that hang, from a thread of rank 0, and end those that can be reached; torchrun does the rest.

    Of ranks on other hosts it sees only those whose `live/` lies on a disk shared with this one.
    """
    one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    events = EventWriter(run.events, LAUNCHER_RANK)
    look = stall_check(run, config, events, _kill_rank if one_host else _nothing)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(OSError):  # a full disk is the workers' to report
                look()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        events.close()


def _kill_rank(pid: int) -> None:
    """End a rank of this host's world: a process that the same torchrun started, whatever a file says."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.ppid() == os.getppid():
            process.kill()


def _packed(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _nothing(_: object) -> None:
    pass


def _note_launch(run: RunDirectory, resume: bool) -> None:
    """Wall time counts from here; what was written before is of an earlier command."""
    events = EventWriter(run.events, LAUNCHER_RANK)
    say_launched(events, resume)
    events.close()


def _write_config(run: RunDirectory, config: Config) -> None:
    try:
        write_text_atomically(run.config, dump_config(config))
    except OSError as error:
        raise unwritable(run.path, error) from error
