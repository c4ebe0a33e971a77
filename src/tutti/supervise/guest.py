"""Replicas of a run that another machine started: `tutti join`."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from tutti.data.lock import locked
from tutti.data.manifest import NAME as MANIFEST
from tutti.hardware import usable_cores
from tutti.launch.local import LAUNCHER_RANK, LocalLaunch
from tutti.launch.meeting import Meeting, bracketed
from tutti.observe import summarise_errors
from tutti.supervise.beside import Show, stall_check
from tutti.supervise.door import CHUNK_BYTES
from tutti.supervise.reception import meeting_of, software
from tutti.sync.asking import Line
from tutti.sync.channel import proof
from tutti.train.measure import main as measure_main
from tutti.train.replicas import Elastic
from tutti.train.worker import Assignment
from tutti.train.worker import main as worker_main

#: How long the first machine may take to answer at first (it cannot say that the key is wrong), and later.
_FIRST_ANSWER_SECONDS = 20.0
_ANSWER_SECONDS = 15.0
_FAREWELL_SECONDS = 2.0
_PING_SECONDS = 2.0
_WAIT_SECONDS = 0.5
#: In a run's directory on a guest: of which run it is, without giving the key away.
_MARK = "guest-of"
Say = Callable[[str], None]


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
    _gone: str = ""

    def take_part(self) -> dict[str, Any]:
        """Come in, train until the run ends or this machine leaves, and say how it went.

        Raises:
            TuttiError: nobody answers, there is no place, or this machine's part failed.
        """
        self._line = Line(f"tcp://{bracketed(self.host)}:{self.port}", self.key)
        try:
            offered = self._ask(
                "join",
                patience=lambda: _FIRST_ANSWER_SECONDS,
                count=self.count,
                cores=usable_cores(),
                machine=socket.gethostname(),
                software=software(),
            )
            if "refused" in offered:
                raise LaunchError(f"{self._address} refuses: {offered['refused']}", offered["hint"])
            self._guest = int(offered["guest"])
            self._numbers = [int(number) for number in offered["numbers"]]
            self._incarnation = int(offered["incarnation"])
            self._files: dict[str, int] = offered["files"]
            try:
                result = self._stay()
            except BaseException:
                self._leave()
                raise
            if result["state"] == "left":
                self._leave()
            return result
        finally:
            self._line.close()

    def _stay(self) -> dict[str, Any]:
        """Do what there is to do: measure, if that is asked for, then train."""
        self._say(
            f"{self._address}: this machine has replicas {', '.join(map(str, self._numbers))} of its run"
        )
        stage = 0
        while True:
            work = self._next_work(stage)
            stage = int(work["stage"])
            config = parse_config(work["config"], f"of the run at {self._address}")
            prepared = self._fetch_text(config, Path(work["prepared"]).name)
            run = self._make_directory(config, work["config"])
            if work["measure"]:
                self._say("sync: auto: measuring steps, links and codecs before the run")
            began = time.time()
            launch = self._launch(config, run, prepared, work)
            events = EventWriter(run.events, LAUNCHER_RANK)
            events.write("launched", resume=False)
            look = stall_check(run, config, events, launch.kill)
            with Show(run, self.console, began), self._in_touch(launch):
                outcome = launch.execute(look)
            events.close()
            if self._gone:
                raise LaunchError(
                    f"{self._gone}; this machine's replicas have ended",
                    "once the run goes on there (with --resume), join it again",
                )
            if not outcome.succeeded and not outcome.stopped:
                problem = summarise_errors(run.path, began) or outcome.reason
                raise LaunchError(problem, f"what the workers printed stands in {run.logs}")
            if work["measure"] and not outcome.stopped:
                found = [e for e in read_events(run.path, "sync_measured") if e["time"] >= began]
                self._ask("measured", lambda: _ANSWER_SECONDS, guest=self._guest, events=found)
                continue
            steps = [e["step"] for e in read_events(run.path, "step") if e["time"] >= began]
            state = "left" if outcome.stopped else "finished"
            return {
                "run": run.name,
                "state": state,
                "replicas": self._numbers,
                "step": max(steps, default=None),
            }

    def _next_work(self, after: int) -> dict[str, Any]:
        while True:
            work = self._ask("work", lambda: _ANSWER_SECONDS, guest=self._guest, after=after)
            if "wait" not in work:
                return work
            time.sleep(_WAIT_SECONDS)

    def _launch(self, config: Config, run: RunDirectory, prepared: Path, work: dict[str, Any]) -> LocalLaunch:
        meeting, server = meeting_of(work)
        secret, here = bytes.fromhex(work["secret"]), self._own_address()
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

    # The first machine -------------------------------------------------------------------------------------------

    @property
    def _address(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    def _exchange(self, verb: str, patience: Callable[[], float], **fields: Any) -> list[bytes]:
        answer = self._line.ask([json.dumps({"verb": verb, **fields}).encode()], patience)
        if answer is None:
            raise LaunchError(
                f"nobody at {self._address} answers to this key",
                "is the run there, with --listen, its port within reach, and the key its own?",
            )
        return answer

    def _ask(self, verb: str, patience: Callable[[], float], **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._exchange(verb, patience, **fields)[0])
        return found

    def _leave(self) -> None:
        with suppress(LaunchError):
            self._ask("leave", lambda: _FAREWELL_SECONDS, guest=self._guest)

    @contextmanager
    def _in_touch(self, launch: LocalLaunch) -> Iterator[None]:
        """Tell the first machine now and then that this one is there; leave when it has gone, or has given us up."""
        over = threading.Event()

        def patience() -> float:
            return 0.0 if over.is_set() else _ANSWER_SECONDS

        def ping() -> None:
            while not over.wait(_PING_SECONDS):
                try:
                    if self._ask("alive", patience, guest=self._guest)["known"]:
                        continue
                    self._gone = (
                        f"{self._address} has given the places of this machine to others: it was cut off"
                    )
                except LaunchError:
                    if over.is_set():
                        return
                    self._gone = (
                        f"{self._address}, which started the run, was silent for {_ANSWER_SECONDS:.0f} s"
                    )
                launch.stop()
                return

        thread = threading.Thread(target=ping, name="in touch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _own_address(self) -> str:
        """What the others call this machine: the address that its packets to the first one come from."""
        kind, *_, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            own: str = probe.getsockname()[0]
        return own

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
        """The prepared text `name`: this machine's own, if it has it, or the first machine's, file by file."""
        cache = (self.cache or Path(config.data.cache)).expanduser()
        directory = cache / "prepared" / name
        with locked(cache / "locks" / f"{name}.lock", self._say):
            try:
                open_prepared(directory)
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
                open_prepared(directory)
        return directory.absolute()

    def _fetch(self, name: str, size: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            while file.tell() < size:
                _, data = self._exchange(
                    "file", lambda: _ANSWER_SECONDS, guest=self._guest, name=name, offset=file.tell()
                )
                if not data or len(data) > CHUNK_BYTES:
                    raise LaunchError(f"{self._address} sent no more of {name}", "try again")
                file.write(data)
        part.replace(path)

    def _say(self, message: str) -> None:
        if self.console:
            print(message, flush=True)
