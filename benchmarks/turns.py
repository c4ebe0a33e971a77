"""Peers that train in turns on the same cores, so that a busy moment of the machine hits all of them alike.

Every peer is started once and stays in memory; one at a time makes a few steps, the others wait. The side of the
peer is `Turns.before_step`, called before every step by each of its ranks; the side of the benchmark is
`Contestant`. They speak through files in one directory a peer:

    ready-T-RANK    this rank has finished turn T − 1 (with the time it took) and waits
    go-T            make the steps of turn T

Turn 0 is the warm-up (compilation, caches); it has steps of its own and is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT

_POLL_SECONDS = 0.02


class Turns:
    """One rank of a peer; `warmup` steps make turn 0, then every `steps` a turn."""

    def __init__(self, directory: Path, rank: int, warmup: int, steps: int) -> None:
        self._directory = directory
        self._rank = rank
        self._warmup = warmup
        self._steps = steps
        self._made = 0
        self._began = self._began_cpu = 0.0

    @classmethod
    def of_environment(cls, rank: int) -> Turns:
        """As `Contestant.start` wrote it into the environment."""
        names = ("TURNS_DIRECTORY", "TURNS_WARMUP", "TURNS_STEPS")
        directory, warmup, steps = (os.environ[name] for name in names)
        return cls(Path(directory), rank, int(warmup), int(steps))

    def before_step(self, loss: float | None = None) -> None:
        """Wait, where a turn ends here, until this peer has its next one. `loss`: of the last step, for the record."""
        turn = self._turn()
        self._made += 1
        if turn is None:
            return
        record = {
            "began": self._began,
            "ended": time.perf_counter(),
            "cpu_seconds": time.process_time() - self._began_cpu,
            "loss": loss,
        }
        beside = self._directory / f".ready-{turn}-{self._rank}"
        beside.write_text(json.dumps(record))
        beside.rename(self._directory / f"ready-{turn}-{self._rank}")
        go = self._directory / f"go-{turn}"
        parent = os.getppid()
        while not go.exists():
            if os.getppid() != parent:  # the benchmark is gone
                os._exit(1)
            time.sleep(_POLL_SECONDS)
        self._began = time.perf_counter()
        self._began_cpu = time.process_time()

    def _turn(self) -> int | None:
        """The turn that begins with the coming step, if one does."""
        if self._made == 0:
            return 0
        since = self._made - self._warmup
        return 1 + since // self._steps if since >= 0 and since % self._steps == 0 else None


class PeerFailed(Exception):
    """A peer died or was too slow; the message ends with the last lines of its log."""


@dataclass
class Contestant:
    """A peer of `ranks` processes that `command` starts; `directory` (made here) holds its turns and its log."""

    name: str
    command: Sequence[str]
    directory: Path
    warmup: int
    steps: int
    ranks: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The last record of every rank.
    records: list[dict[str, Any]] = field(default_factory=list)
    _turn: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the processes; they come to their first turn by themselves."""
        self.directory.mkdir(parents=True)
        turns = {
            "TURNS_DIRECTORY": str(self.directory.absolute()),
            "TURNS_WARMUP": str(self.warmup),
            "TURNS_STEPS": str(self.steps),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment, **turns},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float) -> None:
        """Until all ranks wait for their next turn. Raises PeerFailed."""
        deadline = time.monotonic() + seconds
        files = [self.directory / f"ready-{self._turn}-{rank}" for rank in range(self.ranks)]
        assert self._process is not None, "not started"
        while not all(file.exists() for file in files):
            if self._process.poll() is not None:
                raise PeerFailed(f"{self.name} ended with {self._process.returncode}:\n{self._log()}")
            if time.monotonic() > deadline:
                raise PeerFailed(f"{self.name} was not ready within {seconds:.0f} s:\n{self._log()}")
            time.sleep(_POLL_SECONDS)
        self.records = [json.loads(file.read_text()) for file in files]

    def take_turn(self, seconds: float) -> float:
        """Let it make the steps of its next turn; the seconds from the first rank's start to the last one's end."""
        self.wait_ready(seconds)
        self.release()
        self.wait_ready(seconds)
        return float(max(r["ended"] for r in self.records) - min(r["began"] for r in self.records))

    def release(self) -> None:
        """Let it make its next turn, without waiting for the end (`wait_ready` does)."""
        (self.directory / f"go-{self._turn}").touch()
        self._turn += 1

    def stop(self) -> None:
        """End all its processes, also those that torchrun put into sessions of their own."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            for process in (psutil.Process(self._process.pid), *family):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()

    def _log(self) -> str:
        text = (self.directory / "log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-25:])


def torchrun(module: str, arguments: Sequence[str], port: int) -> list[str]:
    """The command that runs `module` on two ranks of this machine."""
    return [
        sys.executable,
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)),
        *("--monitor-interval", "1", "-m", module, *arguments),
    ]
