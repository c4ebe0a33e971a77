"""The process of the parameter server: it listens, until the launcher has seen all replicas end."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import zmq

from tutti.config import load_config
from tutti.config.schema import Config
from tutti.core.errors import LaunchError
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.core.rundir import RunDirectory
from tutti.sync.codecs import PowerSGD, make_codec
from tutti.sync.server import SERVER_RANK, Host, Rules, ServerAddress, ServerMemory, listen
from tutti.train.process import StopRequest, die_with, redirect_output, report_error
from tutti.train.schedule import learning_rate_factor
from tutti.train.served import server_optimizer
from tutti.train.settings import Settings, settings_of

#: How long an address may still be held by a server that was killed.
_BIND_SECONDS = 20.0


@dataclass(frozen=True)
class ServerAssignment:
    """What the server is told; everything else is in the run directory. Picklable."""

    run: Path
    at: ServerAddress = field(repr=False)
    threads: int
    launcher_pid: int


def main(assignment: ServerAssignment) -> None:
    """Serve to the end. Exits with 1 after writing an `error` event when anything goes wrong."""
    run = RunDirectory(assignment.run)
    die_with(assignment.launcher_pid)
    redirect_output(run.logs / "server.log")
    stop = StopRequest()
    stop.training = True
    events = EventWriter(run.events, SERVER_RANK, replica=-1)
    with LiveSign(run.live, SERVER_RANK) as live:
        try:
            torch.set_num_threads(assignment.threads)
            _serve(assignment, run, live, stop)
        except BaseException as error:
            try:
                report_error(error, events, live, log=True)
            finally:
                os._exit(1)


def _serve(assignment: ServerAssignment, run: RunDirectory, live: LiveSign, stop: StopRequest) -> None:
    config = load_config(run.config)
    settings = settings_of(config, torch.device("cpu"))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = _listen(context, assignment.at)
    live.set(phase="serving")
    owner = hashlib.sha256(assignment.at.secret).hexdigest()[:16]
    Host(
        socket,
        rules_of(config, settings),
        ServerMemory(run.path / "server" / "state.safetensors", owner),
        run.path,
        lambda: stop.asked,
        lambda step: live.set(step=step),
    ).run()
    context.destroy(linger=0)


def _listen(context: zmq.Context[zmq.Socket[bytes]], at: ServerAddress) -> zmq.Socket[bytes]:
    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            return listen(context, at.address, at.secret)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                raise LaunchError(
                    f"the parameter server cannot listen at {at.address}: {error}", "start the run again"
                ) from error
        time.sleep(0.1)


def rules_of(config: Config, settings: Settings) -> Rules:
    """What the server goes by, of a resolved configuration."""
    sync, train = config.sync, config.train
    codec = make_codec(sync)
    assert not isinstance(codec, PowerSGD), "refused before a worker starts"
    assert not isinstance(config.replicas, str) and not isinstance(sync.delay_compensation, str)

    def factor(step: int) -> float:
        return learning_rate_factor(
            step, settings.steps, settings.warmup, settings.schedule, settings.final_learning_rate
        )

    return Rules(
        batch=settings.batch,
        steps=settings.steps,
        replicas=config.replicas,
        parts=config.layout.ranks,
        staleness=None if sync.staleness == "unbounded" else sync.staleness,
        min_replicas=sync.min_replicas,
        compensation=sync.delay_compensation,
        clip=settings.clip,
        squeeze=sync.then == "zstd",
        codec=codec,
        factor=factor,
        make_stepper=server_optimizer(train, settings.learning_rate),
    )
