"""One schedule of disturbances for one run: checked before anything starts, carried out beside the launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tutti.config import Config
from tutti.core.errors import ConfigError
from tutti.core.events import EventWriter
from tutti.disturb.disturber import Disturber
from tutti.disturb.firewall import Firewall
from tutti.disturb.schedule import Line, draw
from tutti.disturb.worker import Fragile, fragile_main
from tutti.launch.local import LocalLaunch
from tutti.launch.meeting import Meeting

#: Restarts that are allowed where kills have no end.
_ANY_NUMBER = 1_000_000


@dataclass
class Trouble:
    """What will happen to the run, and the means to do it."""

    lines: Sequence[Line]
    seed: int = 0

    def check(self, config: Config) -> None:
        """Whether all of it can be done to a run of `config`, in which nothing is `auto` any more.

        Raises:
            TuttiError: there is no such replica, nobody to be cut off from, or no right to cut.
        """
        replicas = config.replicas
        assert isinstance(replicas, int), "resolve() leaves no auto"
        for line in self.lines:
            if line.replica is not None and line.replica >= replicas:
                raise ConfigError(
                    f"--{line.kind} {line.text}: there is no replica {line.replica}",
                    f"this run has replicas 0 to {replicas - 1}; replicas={line.replica + 1} gives it more",
                )
            if line.kind == "cut" and replicas == 1:
                raise ConfigError(
                    f"--cut {line.text}: the only replica has nobody to be cut off from",
                    "set replicas to 2 or more",
                )
        if self._cuts:
            Firewall(replicas).close()

    @property
    def _cuts(self) -> bool:
        return any(line.kind == "cut" for line in self.lines)

    @property
    def restarts(self) -> int:
        """How many restarts its kills may cause; these are not the run's fault."""
        kills = [line for line in self.lines if line.kind == "kill"]
        return _ANY_NUMBER if any(line.repeats for line in kills) else len(kills)

    @contextmanager
    def around(self, launch: LocalLaunch, since: float, events: EventWriter) -> Iterator[None]:
        """Around the execution of `launch` (since Unix time `since`): its workers are disturbed."""
        events.write("chaos", seed=self.seed, schedule=[f"{line.kind} {line.text}" for line in self.lines])
        launch.max_restarts += self.restarts
        with contextlib.ExitStack() as stack:
            firewall = None
            if self._cuts:
                firewall = stack.enter_context(contextlib.closing(Firewall(launch.replicas)))
                _confine(launch, firewall)
            stack.enter_context(
                Disturber(
                    draw(self.lines, self.seed, launch.replicas),
                    run=launch.run,
                    since=since,
                    pids=launch.pids,
                    stopping=lambda: launch.stopping,
                    events=events,
                    firewall=firewall,
                )
            )
            yield


def _confine(launch: LocalLaunch, firewall: Firewall) -> None:
    """Every worker of `launch` begins in the control group of its replica."""
    entry, assign, parts = launch.entry, launch.assignment, launch.parts
    groups = tuple(firewall.group(replica) for replica in range(launch.replicas))

    def assign_fragile(replica: int | None, meeting: Meeting | None) -> Fragile:
        return Fragile(entry, assign(replica, meeting), replica, parts, groups)

    launch.entry, launch.assignment = fragile_main, assign_fragile
