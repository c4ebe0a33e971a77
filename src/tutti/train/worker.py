"""One worker process, from entering the world to leaving it. `launch` starts it; `torchrun` may as well."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tutti.config import Config, load_config
from tutti.core.errors import TuttiError
from tutti.core.events import EventWriter
from tutti.core.live import LiveSign
from tutti.core.rundir import RunDirectory
from tutti.hardware import measure_matmul
from tutti.parallel import World, apply_layout, join_world, leave_world
from tutti.sync import (
    AllReduce,
    DiLoCo,
    DistributedDataParallelAllReduce,
    PeerLost,
    Place,
    Policy,
    StaticTransport,
)
from tutti.train.checkpoints import Checkpointer
from tutti.train.feed import Feed
from tutti.train.function import function_job
from tutti.train.job import Job
from tutti.train.language import language_model_job
from tutti.train.loop import Loop
from tutti.train.optimizer import build_optimizers
from tutti.train.precision import DTYPES, LossScale
from tutti.train.rehearsal import Rehearsal
from tutti.train.settings import Settings, settings_of
from tutti.train.state import RunState, StateKeeper
from tutti.train.step import Accumulator

#: How long replicas that are started together wait for each other before the first round.
_START_TOGETHER_SECONDS = 120


@dataclass(frozen=True)
class Elastic:
    """How this replica finds the others: torchft's lighthouse, and a store to start together."""

    replica: int
    lighthouse: str
    store: tuple[str, int]


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


def main(assignment: Assignment) -> None:
    """Train as one rank. Exits with 1 after writing an `error` event when anything goes wrong."""
    run = RunDirectory(assignment.run)
    config = load_config(run.config)
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    parts = config.layout.ranks
    local_rank = int(os.environ.get("RANK", "0"))
    rank = local_rank if assignment.elastic is None else assignment.elastic.replica * parts + local_rank
    if assignment.launcher_pid is not None:
        _die_with(assignment.launcher_pid)
    if assignment.launcher_pid is not None or rank != 0:
        _redirect_output(run.logs / f"rank-{rank}.log")
    stop = StopRequest()
    events = EventWriter(run.events, rank, replica=rank // parts)
    with LiveSign(run.live, rank) as live:
        try:
            torch.set_num_threads(assignment.threads)
            _train(assignment, run, config, attempt, events, live, stop)
        except BaseException as error:
            _report(error, events, live)
            # Skip torch's orderly shutdown: it may wait for peers that will never answer.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _train(
    assignment: Assignment,
    run: RunDirectory,
    config: Config,
    attempt: int,
    events: EventWriter,
    live: LiveSign,
    stop: StopRequest,
) -> None:
    elastic = assignment.elastic
    assert not isinstance(config.replicas, str), "api.py resolves every auto before a worker starts"
    world = join_world(
        replicas=config.replicas,
        parts=config.layout.ranks,
        elastic_replica=elastic.replica if elastic else None,
    )
    live.set(phase="building the model")
    job = _job(assignment, run, config)
    job.choices = list(assignment.choices)
    settings = settings_of(config, world.device)
    state = RunState()
    objective = job.objective.to(world.device)
    dtype = None if settings.precision == "fp32" else DTYPES[settings.precision]
    apply_layout(objective, mesh=world.mesh, dtype=dtype, compile=config.train.compile)
    optimizers = build_optimizers(objective.model, config.train, settings.learning_rate)

    keeper: StateKeeper  # the transport hands newcomers what the keeper gives
    policy = _policy(
        config,
        world,
        state,
        elastic,
        attempt,
        give=lambda: keeper.give(state),
        take=lambda given: keeper.take(given, state),
    )
    accumulator = Accumulator(
        objective,
        policy,
        nominal_targets=settings.batch * job.tokens_per_sample,
        clip=settings.clip,
        context=settings.context,
        loss_scale=LossScale(settings.precision),
        sharded_over=world.parts,
        seed=settings.seed,
    )
    keeper = StateKeeper(
        objective=objective,
        optimizers=optimizers.optimizers,
        policy=policy,
        policy_name=config.sync.policy,
        identity={"data": job.train_data.fingerprint, "seed": settings.seed, "batch": settings.batch},
        directory=run.checkpoints,
        make_checkpointer=lambda directory: Checkpointer(
            directory, keep=settings.keep, rank=world.part, group=world.inside, say=print
        ),
        say=lambda message: events.write("warning", message=message),
        together=world.inside if world.elastic else world.everyone,
    )
    feed = Feed(job.train_data, settings.seed, world.device)

    live.set(phase="resuming")
    resumed = keeper.resume(state) if assignment.resume or attempt > 0 else None
    _write_started(events, config, world, job, settings, attempt, state.step if resumed else None)
    if resumed is not None and world.rank == 0:
        events.write("resumed", step=state.step, path=str(resumed))
    if elastic is not None:
        _resume_transport(policy, state)
    if attempt == 0 and not assignment.resume:
        Rehearsal(job, world, settings, events, live).run(
            module=accumulator.module,
            policy=policy,
            feed=feed,
            keeper=keeper,
            state=state,
            directory=run.path,
            whole_model=lambda: _whole_model(job, world),
            compiled=config.train.compile,
        )
    if elastic is not None and attempt == 0:
        _start_together(elastic, world)
    loop = Loop(
        job=job,
        world=world,
        policy=policy,
        accumulator=accumulator,
        optimizers=optimizers,
        feed=feed,
        keeper=keeper,
        settings=settings,
        state=state,
        events=events,
        live=live,
        stop_requested=lambda: stop.asked,
    )
    stop.training = True
    outcome = loop.run()
    _finish(loop, run, outcome)


def _finish(loop: Loop, run: RunDirectory, outcome: str) -> None:
    """Complete the last save; the leading replica writes the export and lets the model speak."""
    with loop.live.phase("finishing"):
        loop.keeper.finish()
        loop.keeper.note_saves(loop.events)
        leads = loop.policy.transport.rank == 0
        if outcome == "finished" and leads:
            model = _whole_model(loop.job, loop.world)
            if loop.world.part == 0:
                loop.job.export(model, run.export)
                loop.job.write_samples(
                    model,
                    lambda prompt, text: loop.events.write(
                        "sample_text", step=loop.state.step, prompt=prompt, text=text
                    ),
                )
        loop.note_memory()
        if loop.leads:
            loop.events.write("finished", step=loop.state.step, state=outcome)
        loop.policy.close()
        leave_world()


def _job(assignment: Assignment, run: RunDirectory, config: Config) -> Job:
    if assignment.prepared is None:
        return function_job(run.path)
    return language_model_job(config, assignment.prepared)


def _policy(
    config: Config,
    world: World,
    state: RunState,
    elastic: Elastic | None,
    attempt: int,
    *,
    give: Callable[[], Any],
    take: Callable[[Any], None],
) -> Policy:
    sync = config.sync
    place = Place(world.replica, world.replicas, world.part, world.parts)
    if sync.policy == "allreduce":
        kind = DistributedDataParallelAllReduce if sync.implementation == "ddp" else AllReduce
        return kind(
            StaticTransport(world.peers),
            place,
            state.ledger,
            config.train.batch,
            bucket_bytes=round(sync.bucket_mb * 1e6),
            everyone=world.everyone,
        )
    transport = StaticTransport(world.peers)
    if elastic is not None:
        from tutti.sync.elastic import (
            ElasticTransport,
        )  # torchft starts servers; only who needs it imports it

        transport = ElasticTransport(  # type: ignore[assignment]
            lighthouse=elastic.lighthouse,
            store=_replica_store(world),
            replica=world.replica,
            part=world.part,
            parts=world.parts,
            min_replicas=sync.min_replicas,
            give_state=give,
            take_state=take,
        )
    return DiLoCo(
        transport,
        place,
        state.ledger,
        config.train.batch,
        every=sync.every,
        learning_rate=sync.outer_learning_rate,
        momentum=sync.outer_momentum,
        inside=StaticTransport(world.inside),
        incarnation=attempt,
    )


def _replica_store(world: World) -> tuple[str, int]:
    """A store for the parts of this replica, new at every attempt, so that nobody reads a dead manager's address."""
    address: list[Any] = [None]
    if world.part == 0:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        _keep_open.append(store)
        address = [("localhost", store.port)]
    if world.inside is not None:
        dist.broadcast_object_list(address, group=world.inside, group_src=0)
    host, port = address[0]
    return host, port


_keep_open: list[Any] = []


def _resume_transport(policy: Policy, state: RunState) -> None:
    from tutti.sync.elastic import ElasticTransport

    if isinstance(policy.transport, ElasticTransport):
        policy.transport.resume_at(state.rounds)


def _start_together(elastic: Elastic, world: World) -> None:
    """Wait until all replicas that were started with this one are ready; go on without those that don't come."""
    store = TCPStore(*elastic.store, is_master=False, wait_for_workers=False)
    if world.part == 0:
        store.add("ready", 1)
    deadline = time.monotonic() + _START_TOGETHER_SECONDS
    while store.add("ready", 0) < world.replicas and time.monotonic() < deadline:
        time.sleep(0.02)


def _whole_model(job: Job, world: World) -> nn.Module:
    """The model with its present weights, unsharded, on the CPU; every part of the replica has to call this."""
    if world.mesh is None and world.device.type == "cpu":
        return job.objective.model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(job.objective.model, options=options)
    model = job.whole_model()
    if world.part == 0:
        model.load_state_dict(weights)
    return model


def _write_started(
    events: EventWriter,
    config: Config,
    world: World,
    job: Job,
    settings: Settings,
    attempt: int,
    resumed_from: int | None,
) -> None:
    """All ranks measure their matmul rate at the same time, as they will compute at the same time."""
    if world.everyone is not None:
        dist.barrier(group=world.everyone)
    rate = torch.tensor(
        measure_matmul(DTYPES[settings.precision], device=world.device.type, threads=torch.get_num_threads()),
        dtype=torch.float64,
    )
    counted = StaticTransport(world.inside if world.elastic else world.everyone)
    counted.all_reduce(rate)
    if world.rank != 0 and not (world.elastic and world.part == 0):
        return
    peak = float(rate) * (world.replicas if world.elastic else 1)
    per_sample = job.flops_per_sample
    events.write(
        "run_started",
        attempt=attempt,
        world_size=world.size,
        replicas=world.replicas,
        layout={"shard": world.parts},
        steps=settings.steps,
        policy=config.sync.policy,
        transport="elastic" if world.elastic else "static",
        precision=settings.precision,
        peak_flops=peak,
        flops_per_token=per_sample / job.tokens_per_sample if per_sample else None,
        parameters=sum(p.numel() for p in job.objective.parameters()),
        tokens_per_step=settings.batch * job.tokens_per_sample,
        resumed_from=resumed_from,
        choices=job.choices,
    )


# The process -------------------------------------------------------------------------------------------------


def _redirect_output(path: Path) -> None:
    """What a worker prints goes to its own file, not among N others on the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _die_with(launcher: int) -> None:
    """Leave when the launcher is gone: a worker without one can be neither watched nor restarted."""

    def watch() -> None:
        while True:
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


class StopRequest:
    """SIGTERM and Ctrl-C ask for a stop after the current step; before the first step there is nothing to save."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self.asked = True
        if not self.training:
            os._exit(128 + number)


#: Words of gloo, NCCL and the store when the other side is gone.
_PEER_WORDS = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out",
    "socket",
    "gloo",
)


def is_peer_error(error: BaseException) -> bool:
    """Whether `error` only says that somebody else is gone."""
    if isinstance(error, PeerLost | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PEER_WORDS)


def _report(error: BaseException, events: EventWriter, live: LiveSign) -> None:
    traceback.print_exc()
    events.write(
        "error",
        step=live.step,
        type=type(error).__name__,
        message=error.problem if isinstance(error, TuttiError) else str(error),
        hint=error.hint if isinstance(error, TuttiError) else "",
        traceback=traceback.format_exc(),
        peer=is_peer_error(error),
        user=isinstance(error, TuttiError),
    )
