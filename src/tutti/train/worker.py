"""One worker process, from entering the world to leaving it. `launch` starts it; `torchrun` may as well."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tutti.config import Config, load_config
from tutti.core.errors import TuttiError
from tutti.core.events import EventWriter, read_events
from tutti.core.live import LiveSign
from tutti.core.rundir import RunDirectory
from tutti.evaluate import evaluation_numbers
from tutti.hardware import measure_matmul
from tutti.parallel import (
    Arithmetic,
    MappedFiles,
    Split,
    World,
    apply_layout,
    join_world,
    keep_optimizer_state,
    leave_world,
)
from tutti.sync import Policy, StaticTransport
from tutti.train import checkpoints
from tutti.train.average import WeightAverage
from tutti.train.checkpoints import Checkpointer
from tutti.train.contrast import contrast_job
from tutti.train.cooperate import Neighbours, rotation_of, start_cooperation
from tutti.train.feed import Feed
from tutti.train.function import function_job
from tutti.train.job import Job
from tutti.train.labelled import has_head, labelled_job
from tutti.train.language import split_language_model_job
from tutti.train.loop import Loop
from tutti.train.optimizer import Optimizers, build_optimizers
from tutti.train.precision import DTYPES, LossScale
from tutti.train.process import StopRequest, die_with, redirect_output, report_error
from tutti.train.rehearsal import Rehearsal
from tutti.train.remembering import Hold
from tutti.train.replicas import Elastic, make_policy, start_together
from tutti.train.served import make_server_policy
from tutti.train.settings import Settings, settings_of
from tutti.train.state import RunState, StateKeeper
from tutti.train.step import Accumulator
from tutti.train.writing import encoder_decoder_job


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


@dataclass(frozen=True)
class Trainee:
    """A model in its place among the ranks, with what changes it."""

    config: Config
    world: World
    settings: Settings
    job: Job
    split: Split
    optimizers: Optimizers
    average: WeightAverage | None = None


def main(assignment: Assignment, before_exit: Callable[[], None] | None = None) -> None:
    """Train as one rank; see `be_a_rank`."""
    be_a_rank(assignment, _train, before_exit)


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


def has_ended(run: RunDirectory) -> bool:
    """Whether the run has come to its end since it was last launched."""
    launched = max((event["time"] for event in read_events(run.path, "launched")), default=0.0)
    return any(event["time"] > launched for event in read_events(run.path, "finished"))


def build(rank: Rank) -> Trainee:
    """Enter the world and build this rank's part of the model."""
    assignment, elastic, replica = rank.assignment, rank.assignment.elastic, rank.events.replica
    own = rank.config.each[replica] if rank.config.each else None
    config = rank.config.of_replica(replica)
    assert not isinstance(config.replicas, str), "api.py resolves every auto before a worker starts"
    world = join_world(
        replicas=config.replicas,
        layout=config.layout,
        elastic_replica=elastic.replica if elastic else None,
        device_kind=own.device if own else None,
        ranks_before=assignment.ranks_before,
    )
    rank.live.set(phase="building the model")
    settings = settings_of(config, world.device)
    job, split = _job(assignment, rank.run, config, world, settings)
    job.choices[:0] = assignment.choices
    job.choices += split.choices
    optimizers = build_optimizers(split.objective.model, config.train, settings.learning_rate)
    files = _files(rank.run, config)
    served = config.sync.policy == "server"  # which has the optimizer
    if (
        files is not None
        and config.memory.offload in ("optimizer", "all")
        and world.device.type == "cpu"
        and not served
    ):
        keep_optimizer_state(optimizers.optimizers, files)
    if job.allocation is not None:
        for optimizer in optimizers.optimizers:
            checkpoints.initialise(optimizer)
        job.allocation.keep_in(optimizers.optimizers)
    average = None
    if config.train.average:
        horizon = max(1.0, config.train.average * settings.steps)
        average = WeightAverage(optimizers.optimizers, horizon)
        job.choices.append(
            f"train.average = {config.train.average:g}: what is validated and handed on is the average of about the "
            f"last {horizon:.0f} steps"
        )
    return Trainee(config, world, settings, job, split, optimizers, average)


def _train(rank: Rank) -> None:
    assignment, run, attempt = rank.assignment, rank.run, rank.attempt
    events, live, stop, elastic = rank.events, rank.live, rank.stop, rank.assignment.elastic
    trainee = build(rank)
    config, world, settings = trainee.config, trainee.world, trainee.settings
    job, split, optimizers = trainee.job, trainee.split, trainee.optimizers
    state = RunState()

    keeper: StateKeeper  # the transport hands newcomers what the keeper gives
    nominal_targets = settings.batch * job.tokens_per_sample
    # What a guest may have saved is of a time that others left behind.
    guest = elastic is not None and elastic.guest
    incarnation = attempt + (elastic.incarnation if elastic is not None else 0)
    if elastic is not None and elastic.server is not None:
        policy: Policy = make_server_policy(
            config,
            world,
            state,
            split,
            optimizers,
            address=elastic.server,
            incarnation=incarnation,
            gives=not guest,
            nominal_targets=nominal_targets,
        )
    else:
        policy = make_policy(
            config,
            world,
            state,
            elastic,
            incarnation,
            give=lambda: keeper.give(state),
            take=lambda given: keeper.take(given, state),
            say=lambda message: events.write("warning", message=message),
        )
    accumulator = Accumulator(
        split,
        policy,
        nominal_targets=nominal_targets,
        clip=settings.clip,
        context=settings.context,
        loss_scale=LossScale(settings.precision),
        seed=settings.seed,
        hold=Hold(split.objective, job.known, config.remember.ewc) if job.known is not None else None,
    )
    rotation = rotation_of(config, assignment.neighbours)
    identity = {"data": job.train_data.fingerprint, "seed": settings.seed, "batch": settings.batch}
    keeper = StateKeeper(
        split=split,
        optimizers=optimizers.optimizers,
        policy=policy,
        policy_name=config.sync.policy,
        codec_name=config.sync.codec,
        identity=identity | ({"order": str(rotation)} if rotation else {}),
        directory=run.checkpoints,
        make_checkpointer=lambda directory: Checkpointer(
            directory,
            keep=settings.keep,
            rank=world.part,
            group=world.inside,
            say=print,
            staging=run.path if config.memory.offload == "all" else None,
        ),
        say=lambda message: events.write("warning", message=message),
        together=world.inside if world.elastic else world.everyone,
    )
    feed = Feed(job.train_data, settings.seed, world.device, rotation)

    live.set(phase="resuming")
    resumed = keeper.resume(state) if (assignment.resume or attempt > 0) and not guest else None
    if attempt > 0 and elastic is not None and has_ended(run):
        policy.close()  # the others made the last step while this replica was being started again
        leave_world()
        return
    _write_started(events, config, world, job, settings, attempt, state.step if resumed else None)
    if resumed is not None and world.rank == 0:
        events.write("resumed", step=state.step, path=str(resumed))
    policy.rounds = state.rounds
    policy.evaluation_numbers = evaluation_numbers(
        job.validation_data, settings.validation_samples, job.answer_width
    )
    if attempt == 0 and not assignment.resume:
        Rehearsal(job, world, settings, events, live).run(
            accumulator=accumulator,
            feed=feed,
            keeper=keeper,
            state=state,
            directory=run.path,
            whole_model=lambda path: _whole_model(job, world, lambda: path),
            compiled=config.train.compile,
        )
    if elastic is not None and attempt == 0:
        policy.transport.announce()
        with live.phase("waiting for the other replicas"):
            start_together(
                elastic, world, lambda missing, most: events.write("waiting", missing=missing, seconds=most)
            )
    cooperation = start_cooperation(config, assignment.neighbours, split.objective, world, events)
    if cooperation is not None and assignment.neighbours is not None and attempt == 0:
        with live.phase("waiting for the other groups"):
            cooperation.meet(assignment.neighbours.groups)
    loop = Loop(
        job=job,
        world=world,
        split=split,
        policy=policy,
        accumulator=accumulator,
        optimizers=optimizers,
        feed=feed,
        keeper=keeper,
        settings=settings,
        state=state,
        events=events,
        live=live,
        stop_requested=lambda: stop.asked and not guest,  # who leaves does not stop the others
        cooperation=cooperation,
        average=trainee.average,
    )
    stop.training = True
    try:
        outcome = loop.run()
    except TuttiError:
        keeper.finish()  # bad numbers end the run; the save that was being written is still good
        raise
    if cooperation is not None:
        cooperation.close(state.step)
    _finish(loop, run, outcome)


def _finish(loop: Loop, run: RunDirectory, outcome: str) -> None:
    """Complete the last save; the leading replica writes the export and lets the model speak."""
    with loop.live.phase("finishing"):
        loop.keeper.finish()
        loop.keeper.note_saves(loop.events)
        if outcome == "finished" and loop.leads:
            with loop.average.in_place() if loop.average is not None else nullcontext():
                _hand_on(loop, run)
        loop.note_memory()
        loop.live.set(step=loop.state.step)
        if loop.leads:
            loop.events.write("finished", step=loop.state.step, state=outcome)
        loop.policy.close()
        leave_world()


def _hand_on(loop: Loop, run: RunDirectory) -> None:
    model = _final_model(loop, run)
    loop.job.complete(model, loop.settings.context)
    loop.job.export(model, run.export)
    if (found := loop.job.examine(model, loop.settings.context)) is not None:
        loop.events.write("test", step=loop.state.best_step, **found)
    loop.job.write_samples(
        model,
        lambda prompt, text: loop.events.write("sample_text", step=loop.state.step, prompt=prompt, text=text),
    )


def _final_model(loop: Loop, run: RunDirectory) -> nn.Module:
    """The whole model that is handed on: the last, or where a metric says which is better, the best."""
    if loop.job.main_metric is None or loop.state.best_step in (None, loop.state.step):
        return _whole_model(loop.job, loop.world, lambda: checkpoints.newest_valid(run.checkpoints))
    saved = checkpoints.best_valid(run.checkpoints)
    assert saved is not None, "present weights were saved a moment ago"
    model = loop.job.whole_model()
    checkpoints.load_weights(saved, model)
    return model


def _job(
    assignment: Assignment, run: RunDirectory, config: Config, world: World, settings: Settings
) -> tuple[Job, Split]:
    """What is trained, and its model laid out over the ranks."""
    arithmetic = Arithmetic(
        dtype=None if settings.precision == "fp32" else DTYPES[settings.precision],
        compile=config.train.compile,
        recompute=config.memory.recompute,
        offload=config.memory.offload,
        files=_files(run, config),
    )
    if assignment.prepared is None:
        job: Job = function_job(run.path)
        return job, apply_layout(job.objective.to(world.device).train(), world, arithmetic)
    if config.task.asks:
        by_contrast = config.task.contrast
        make = contrast_job if by_contrast else partial(labelled_job, learns=True)
        job = make(config, assignment.prepared)
        return job, apply_layout(job.objective.to(world.device).train(), world, arithmetic)
    if has_head(config):
        job = encoder_decoder_job(config, assignment.prepared)
        return job, apply_layout(job.objective.to(world.device).train(), world, arithmetic)
    return split_language_model_job(config, assignment.prepared, world, arithmetic)


def _files(run: RunDirectory, config: Config) -> MappedFiles | None:
    """Where offloaded tensors lie: on the run's disk, which has to hold its checkpoints anyway."""
    return None if config.memory.offload == "none" else MappedFiles(run.path)


def _whole_model(job: Job, world: World, find: Callable[[], Path | None]) -> nn.Module:
    """The whole model with its present weights, on the CPU: this rank's, or read from what `find` finds saved."""
    if world.parts == 1 and world.device.type == "cpu":
        return job.objective.model
    saved = find()
    assert saved is not None, "present weights were saved a moment ago"
    model = job.whole_model()
    checkpoints.load_weights(saved, model)
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
    dtype, threads = DTYPES[settings.precision], torch.get_num_threads()
    # The best of several: a busy moment would make the peak too low, and utilisation too good to be true.
    rates = [measure_matmul(dtype, device=world.device.type, threads=threads, seconds=0.15) for _ in range(3)]
    rate = torch.tensor(max(rates), dtype=torch.float64)
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
        layout=world.layout.sizes,
        steps=settings.steps,
        policy=config.sync.policy,
        transport="elastic" if world.elastic else "static",
        precision=settings.precision,
        peak_flops=peak,
        flops_per_token=per_sample / job.tokens_per_sample if per_sample else None,
        parameters=job.parameters,
        tokens_per_step=settings.batch * job.tokens_per_sample,
        resumed_from=resumed_from,
        choices=job.choices,
    )
