"""One worker process as one rank: what it is told, and how it reports that it failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tutti.config import Config, load_config
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.core.rundir import RunDirectory
from tutti.train.cooperate import Neighbours
from tutti.train.process import StopRequest, die_with, redirect_output, report_error
from tutti.train.profiler import Profiling
from tutti.train.replicas import Elastic


@dataclass(frozen=True)
class Assignment:
    """What a worker is told; everything else is in the run directory. Picklable.

    `prepared`: directory of the prepared text; None: the run is of `tutti.fit` and its job file is in the run.
    `resume`: continue from the newest checkpoint also when this is the first attempt.
    """

    run: Path
    prepared: Path | None
    threads: int
    resume: bool = False
    elastic: Elastic | None = None
    launcher_pid: int | None = None
    #: What was chosen for `auto`, with reasons; goes into the run's events.
    choices: tuple[str, ...] = ()
    #: The groups that this one learns from.
    neighbours: Neighbours | None = None
    #: Workers of other runs on this machine that come first where devices are given out.
    ranks_before: int = 0
    #: Steps that are looked at; the run is for nothing else.
    profiling: Profiling | None = None


@dataclass(frozen=True)
class Rank:
    """What a worker has before it does anything: its orders, the run, and how it says where it is."""

    assignment: Assignment
    run: RunDirectory
    config: Config
    attempt: int
    events: EventWriter
    live: LiveSign
    stop: StopRequest


def be_a_rank(
    assignment: Assignment, work: Callable[[Rank], None], before_exit: Callable[[], None] | None = None
) -> None:
    """Do `work` as one rank. Exits with 1 after writing an `error` event when anything goes wrong.

    `before_exit`: told then; given, it is he who tells the user, and the traceback stands in the events alone.
    """
    run = RunDirectory(assignment.run)
    config = load_config(run.config)
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    parts = config.layout.ranks
    local_rank = int(os.environ.get("RANK", "0"))
    rank = local_rank if assignment.elastic is None else assignment.elastic.replica * parts + local_rank
    if assignment.launcher_pid is not None:
        die_with(assignment.launcher_pid)
    if assignment.launcher_pid is not None or rank != 0:
        redirect_output(run.logs / f"rank-{rank}.log")
    stop = StopRequest()
    events = EventWriter(run.events, rank, replica=rank // parts)
    with LiveSign(run.live, rank) as live:
        try:
            torch.set_num_threads(assignment.threads)
            work(Rank(assignment, run, config, attempt, events, live, stop))
        except BaseException as error:
            try:
                report_error(error, events, live, log=before_exit is None)
                if before_exit is not None:
                    before_exit()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:  # a full disk may have refused the report
                # Skip torch's orderly shutdown: it may wait for peers that will never answer.
                os._exit(1)
