"""Replicas of a run that another machine started: `tutti join`."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.config import Config, parse_config
from tutti.core.errors import DataError, LaunchError, RunError
from tutti.core.events import EventWriter, read_events
from tutti.core.files import write_text_atomically
from tutti.core.live import clear_signs
from tutti.core.rundir import RunDirectory, unwritable
from tutti.data import open_prepared
from tutti.data.labelled import open_examples
from tutti.data.lock import locked
from tutti.data.manifest import NAME as MANIFEST
from tutti.hardware import usable_cores
from tutti.launch.local import LAUNCHER_RANK, LocalLaunch
from tutti.launch.meeting import Meeting
from tutti.observe import summarise_errors
from tutti.supervise.beside import Show, stall_check
from tutti.supervise.first_machine import FirstMachine
from tutti.supervise.reception import meeting_of, software
from tutti.sync.channel import proof
from tutti.train.measure import main as measure_main
from tutti.train.rank import Assignment
from tutti.train.replicas import Elastic
from tutti.train.worker import main as worker_main

#: In a run's directory on a guest: of which run it is, without giving the key away.
_MARK = "guest-of"


def how_it_ended(run: Path, since: float) -> str:
    """What workers that nobody here stopped say of `run` since Unix time `since`: finished, or interrupted on the first
    machine."""
    interrupted = any(event["time"] >= since for event in read_events(run, "interrupted"))
    return "interrupted" if interrupted else "finished"


@dataclass
class Visit:
    """The run at `host`:`port`, as this machine takes part in it with up to `count` replicas (None: as many as suit).

    `runs`: the directory in which this machine keeps its part of the run; `cache`: that of prepared text (None: as
    the configuration says).
    """

    host: str
    port: int
    key: bytes
    count: int | None
    runs: Path
    cache: Path | None
    console: bool
    _launched: LocalLaunch | None = None

    def take_part(self) -> dict[str, Any]:
        """Come in, train until the run ends or this machine leaves, and say how it went.

        Raises:
            TuttiError: nobody answers, there is no place, or this machine's part failed.
        """
        with closing(FirstMachine(self.host, self.port, self.key)) as self._first:
            offered = self._first.join(
                count=self.count, cores=usable_cores(), machine=socket.gethostname(), software=software()
            )
            self._numbers = [int(number) for number in offered["numbers"]]
            self._incarnation = int(offered["incarnation"])
            self._files: dict[str, int] = offered["files"]
            with self._first.in_touch(self._stop, lambda: self._launched is not None):
                try:
                    result = self._stay()
                except BaseException:
                    self._first.leave()
                    raise
                if result["state"] == "left":
                    self._first.leave()
                return result

    def _stop(self) -> None:
        if self._launched is not None:
            self._launched.stop()

    def _stay(self) -> dict[str, Any]:
        """Do what there is to do: measure, if that is asked for, then train."""
        self._say(
            f"{self._first.address}: this machine has replicas {', '.join(map(str, self._numbers))} of its run"
        )
        stage = 0
        while True:
            work = self._first.next_work(stage)
            stage = int(work["stage"])
            config = parse_config(work["config"], f"of the run at {self._first.address}")
            prepared = self._fetch_text(config, Path(work["prepared"]).name)
            self._first.require()
            run = self._make_directory(config, work["config"])
            if work["measure"]:
                self._say("sync: auto: measuring steps, links and codecs before the run")
            began = time.time()
            launch = self._launched = self._launch(config, run, prepared, work)
            events = EventWriter(run.events, LAUNCHER_RANK)
            events.write("launched", resume=False)
            look = stall_check(run, config, events, launch.kill)
            with Show(run, self.console, began), closing(events):
                outcome = launch.execute(look)
            self._first.require()
            if not outcome.succeeded and not outcome.stopped:
                problem = summarise_errors(run.path, began) or outcome.reason
                raise LaunchError(problem, f"what the workers printed stands in {run.logs}")
            if work["measure"] and not outcome.stopped:
                found = [e for e in read_events(run.path, "sync_measured") if e["time"] >= began]
                self._first.tell_measured(found)
                continue
            steps = [e["step"] for e in read_events(run.path, "step") if e["time"] >= began]
            return {
                "run": run.name,
                "state": "left" if outcome.stopped else how_it_ended(run.path, began),
                "replicas": self._numbers,
                "step": max(steps, default=None),
            }

    def _launch(self, config: Config, run: RunDirectory, prepared: Path, work: dict[str, Any]) -> LocalLaunch:
        meeting, server = meeting_of(work)
        secret, here = bytes.fromhex(work["secret"]), self._first.own_address()
        threads = max(1, usable_cores() // (len(self._numbers) * config.layout.ranks))

        def assignment(replica: int | None, _: Meeting | None) -> Assignment:
            assert replica is not None
            elastic = Elastic(
                replica,
                meeting.lighthouse,
                meeting.store,
                secret,
                host=here,
                server=server,
                guest=True,
                incarnation=self._incarnation,
            )
            return Assignment(
                run.path.absolute(), prepared, threads, elastic=elastic, launcher_pid=os.getpid()
            )

        return LocalLaunch(
            run=run.path,
            replicas=max(self._numbers) + 1,
            here=self._numbers,
            parts=config.layout.ranks,
            meeting=nullcontext(meeting),
            max_restarts=0 if work["measure"] else config.watch.max_restarts,
            min_replicas=1,
            entry=measure_main if work["measure"] else worker_main,
            assignment=assignment,
            guest=True,
        )

    # What this machine has to have -------------------------------------------------------------------------------

    def _make_directory(self, config: Config, text: str) -> RunDirectory:
        run = RunDirectory.of(str(self.runs), config.name)
        mark, ours = run.path / _MARK, proof(self.key, f"guest of {config.name}")
        try:
            if not mark.exists():
                if run.path.exists():
                    raise RunError(
                        f"{run.path} is another run, or the first machine's own directory of this one",
                        "choose another place for this machine's part with --runs DIRECTORY",
                    )
                run.create()
                write_text_atomically(mark, ours)
            elif mark.read_text(encoding="utf-8") != ours:
                raise RunError(
                    f"{run.path} is this machine's part of another run",
                    "choose another place with --runs DIRECTORY",
                )
            write_text_atomically(run.config, text)
            clear_signs(run.live)
        except OSError as error:
            raise unwritable(run.path, error) from error
        return run

    def _fetch_text(self, config: Config, name: str) -> Path:
        """The prepared text (or examples) `name`: this machine's own, if it has it, or the first machine's, file by
        file."""
        cache = (self.cache or Path(config.data.cache)).expanduser()
        labelled = config.task.labelled
        directory = cache / ("examples" if labelled else "prepared") / name
        opened = open_examples if labelled else open_prepared
        with locked(cache / "locks" / f"{name}.lock", self._say):
            try:
                opened(directory)
            except DataError:
                files = self._files
                self._say(f"fetching the prepared text: {sum(files.values()) / 1e6:,.1f} MB")
                try:
                    # The manifest says that a directory is whole.
                    for file in sorted(files, key=lambda file: file == MANIFEST):
                        if (directory / file).resolve().is_relative_to(directory.resolve()):
                            self._fetch(file, files[file], directory / file)
                except OSError as error:
                    raise unwritable(directory, error) from error
                opened(directory)
        return directory.absolute()

    def _fetch(self, name: str, size: int, path: Path) -> None:
        if path.exists() and path.stat().st_size == size:
            return  # of an earlier attempt; hashes are checked on first use
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            while file.tell() < size:
                file.write(self._first.read(name, file.tell()))
        part.replace(path)

    def _say(self, message: str) -> None:
        if self.console:
            print(message, flush=True)
