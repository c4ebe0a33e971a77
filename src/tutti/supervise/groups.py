"""Several groups on this machine: an ordinary run of each, side by side, and the board on which they meet.

Each group has a supervision of its own in a thread, its own workers, and its own directory in `runs/NAME/groups`. What
goes wrong in one is its own affair: the others go on without what it would have taught them.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tutti.config import Config, dump_config
from tutti.core.errors import LaunchError, TuttiError
from tutti.core.events import EventWriter, read_events
from tutti.core.files import write_text_atomically
from tutti.core.rundir import RunDirectory, unwritable
from tutti.launch.agent import hidden_main
from tutti.launch.local import LAUNCHER_RANK
from tutti.launch.server import start_server
from tutti.launch.signals import stop_requests
from tutti.observe import write_groups_report
from tutti.supervise.beside import say_launched
from tutti.supervise.local import Supervision
from tutti.sync.board import Board
from tutti.sync.channel import new_secret
from tutti.train.cooperate import Neighbours

_LOOK_SECONDS = 0.1


@dataclass
class GroupsSupervision:
    """`runs`: one for each group; `config`: of all of them together."""

    run: RunDirectory
    config: Config
    runs: Sequence[Supervision]
    resume: bool
    _asked_to_stop: int = 0
    _errors: dict[int, BaseException] = field(default_factory=dict)
    _told: dict[int, int] = field(default_factory=dict)

    def execute(self) -> dict[str, Any]:
        """Run all groups to their end and return the report.

        Raises:
            TuttiError: no group came through, in the words of the first that failed.
        """
        events = self._begin()
        start_server()
        secret = new_secret()
        board = Board(secret)
        self._introduce(board, secret)
        threads = [
            threading.Thread(target=self._attend, args=(number, events), name=f"group-{number}", daemon=True)
            for number in range(len(self.runs))
        ]
        try:
            # Outermost: what the groups' launchers put back in turn is this.
            with stop_requests(self._ask_to_stop), hidden_main():
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    self._pass_on_stops()
                    time.sleep(_LOOK_SECONDS)
        finally:
            board.close()
        events.close()
        if len(self._errors) == len(self.runs):
            self._fail()
        return write_groups_report(self.run.path)

    def _begin(self) -> EventWriter:
        try:
            self.run.events.mkdir(parents=True, exist_ok=True)
            for run in self.runs:
                if not run.resume:
                    run.run.create()
            write_text_atomically(self.run.config, dump_config(self.config))
            events = EventWriter(self.run.events, LAUNCHER_RANK)
            say_launched(events, self.resume)
        except OSError as error:
            if not self.resume:
                shutil.rmtree(self.run.path, ignore_errors=True)
            raise unwritable(self.run.path, error) from error
        return events

    def _introduce(self, board: Board, secret: bytes) -> None:
        """Tell each group where it meets the others."""
        before = 0
        for number, run in enumerate(self.runs):
            run.neighbours, run.ranks_before = Neighbours(number, len(self.runs), board.port, secret), before
            config = run.resolved.config
            assert isinstance(config.replicas, int), "resolve() leaves no auto"
            before += config.replicas * config.layout.ranks

    def _attend(self, number: int, events: EventWriter) -> None:
        state, reason = "failed", ""
        try:
            state = str(self.runs[number].execute()["state"])
        except BaseException as error:
            self._errors[number] = error
            reason = error.problem if isinstance(error, TuttiError) else f"{type(error).__name__}: {error}"
        events.write("group_ended", group=number, state=state, reason=reason)

    def _fail(self) -> None:
        first = self._errors[min(self._errors)]
        trained = any(True for run in self.runs for _ in read_events(run.run.path, "step"))
        if not trained and not self.resume:
            shutil.rmtree(self.run.path, ignore_errors=True)
        else:
            write_groups_report(self.run.path)
        if not isinstance(first, TuttiError):
            raise LaunchError(f"no group could be started: {type(first).__name__}: {first}") from first
        raise type(first)(f"every group failed; group {min(self._errors)}: {first.problem}", first.hint)

    # Signals -------------------------------------------------------------------------------------------------

    def _ask_to_stop(self) -> None:
        """The first request to stop is passed on to every group, the second kills."""
        self._asked_to_stop += 1

    def _pass_on_stops(self) -> None:
        for number, run in enumerate(self.runs):
            while run.launched and self._told.get(number, 0) < min(self._asked_to_stop, 2):
                self._told[number] = self._told.get(number, 0) + 1
                run.stop()
