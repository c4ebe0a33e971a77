"""One worker process, from entering the world to leaving it. `launch` starts it; `torchrun` may as well."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from tutti.config import Config
from tutti.core.errors import TuttiError
from tutti.core.events import EventWriter, read_events
from tutti.core.rundir import RunDirectory
from tutti.evaluate import evaluation_numbers
from tutti.hardware import measure_matmul
from tutti.hardware.allocator import keep_what_is_freed
from tutti.parallel import World, leave_world
from tutti.sync import Policy, StaticTransport
from tutti.train.checkpoints import Checkpointer
from tutti.train.cooperate import rotation_of, start_cooperation
from tutti.train.ending import finish, whole_model
from tutti.train.feed import Feed
from tutti.train.job import Job
from tutti.train.loop import Loop
from tutti.train.precision import DTYPES, LossScale
from tutti.train.profiler import StepProfiler, shortened
from tutti.train.rank import Assignment, Rank, be_a_rank
from tutti.train.rehearsal import Rehearsal
from tutti.train.remembering import Hold
from tutti.train.replicas import make_policy, start_together
from tutti.train.served import make_server_policy
from tutti.train.settings import Settings, settings_of
from tutti.train.state import RunState, StateKeeper
from tutti.train.step import Accumulator
from tutti.train.trainee import build


def main(assignment: Assignment, before_exit: Callable[[], None] | None = None) -> None:
    """Train as one rank; see `be_a_rank`."""
    be_a_rank(assignment, _train, before_exit)


def _has_ended(run: RunDirectory) -> bool:
    """Whether the run has come to its end since it was last launched. Whoever ends it says so before he leaves the
    others' membership, so who meets others, or nobody, afterwards knows it."""
    launched = max((event["time"] for event in read_events(run.path, "launched")), default=0.0)
    return any(event["time"] > launched for event in read_events(run.path, "finished"))


def _train(rank: Rank) -> None:
    assignment, run, attempt = rank.assignment, rank.run, rank.attempt
    events, live, stop, elastic = rank.events, rank.live, rank.stop, rank.assignment.elastic
    trainee = build(rank)
    config, world, settings = trainee.config, trainee.world, trainee.settings
    job, split, optimizers = trainee.job, trainee.split, trainee.optimizers
    if world.device.type == "cpu" and config.memory.offload == "none":
        keep_what_is_freed()
    if assignment.profiling is not None:
        config = shortened(config, assignment.profiling)
        settings = settings_of(config, world.device)
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
    scale = LossScale(settings.precision)
    accumulator = Accumulator(
        split,
        policy,
        nominal_targets=nominal_targets,
        clip=settings.clip,
        context=settings.context,
        loss_scale=scale,
        seed=settings.seed,
        hold=Hold(split.objective, job.known, config.remember.ewc) if job.known is not None else None,
    )
    rotation = rotation_of(config, assignment.neighbours)
    identity = {"data": job.train_data.fingerprint, "seed": settings.seed, "batch": settings.batch}
    if settings.batches.steps:
        identity["batch_warmup"] = f"{settings.batches.start} {settings.batches.steps}"
    keeper = StateKeeper(
        split=split,
        optimizers=optimizers.optimizers,
        policy=policy,
        policy_name=f"{config.sync.policy} late" if policy.late else config.sync.policy,
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
        scale=scale,
    )
    evened = None if settings.batches.steps else settings.batch  # while it grows no order is of whole steps
    feed = Feed(job.train_data, settings.seed, world.device, rotation, batch=evened)

    live.set(phase="resuming")
    resumed = keeper.resume(state) if (assignment.resume or attempt > 0) and not guest else None

    def others_ended() -> bool:
        """While this replica was being started again."""
        return attempt > 0 and elastic is not None and _has_ended(run)

    def leave() -> None:
        policy.close()
        leave_world()

    if others_ended():
        leave()
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
            whole_model=lambda path: whole_model(job, world, lambda: path),
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
    profiler = None
    if assignment.profiling is not None:
        profiler = StepProfiler(assignment.profiling, world.device, events, run.path / "traces")
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
        others_ended=others_ended,
        cooperation=cooperation,
        average=trainee.average,
        profiler=profiler,
    )
    stop.training = True
    try:
        outcome = loop.run()
    except TuttiError:
        keeper.finish()  # bad numbers end the run; the save that was being written is still good
        raise
    if cooperation is not None:
        cooperation.close(state.step)
    if profiler is not None:
        profiler.close()
        outcome = "profiled" if outcome == "finished" else outcome  # there is nothing to hand on
    if outcome == "late":  # what it would train on from was saved before the others' last step
        leave()
        return
    finish(loop, run, outcome)


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
        checkpoint_every=settings.checkpoint_every,
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
