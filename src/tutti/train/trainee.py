"""The model that a run trains: built, laid out over the ranks, with its optimizers and its data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tutti.config import Config
from tutti.core.rundir import RunDirectory
from tutti.parallel import (
    Arithmetic,
    MappedFiles,
    Split,
    World,
    apply_layout,
    join_world,
    keep_optimizer_state,
)
from tutti.train import checkpoints
from tutti.train.average import WeightAverage
from tutti.train.contrast import contrast_job
from tutti.train.function import function_job
from tutti.train.job import Job
from tutti.train.labelled import has_head, labelled_job
from tutti.train.language import split_language_model_job
from tutti.train.masked import masked_job
from tutti.train.optimizer import Optimizers, build_optimizers
from tutti.train.precision import DTYPES
from tutti.train.rank import Assignment, Rank
from tutti.train.settings import Settings, settings_of
from tutti.train.writing import encoder_decoder_job


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
        asked = make(config, assignment.prepared)
        return asked, apply_layout(asked.objective.to(world.device).train(), world, arithmetic, asked.twin)
    if config.task.masked:
        masked = masked_job(config, assignment.prepared)
        return masked, apply_layout(masked.objective.to(world.device).train(), world, arithmetic, masked.twin)
    if has_head(config):
        job = encoder_decoder_job(config, assignment.prepared, learns=True)
        return job, apply_layout(job.objective.to(world.device).train(), world, arithmetic)
    return split_language_model_job(config, assignment.prepared, world, arithmetic)


def _files(run: RunDirectory, config: Config) -> MappedFiles | None:
    """Where offloaded tensors lie: on the run's disk, which has to hold its checkpoints anyway."""
    return None if config.memory.offload == "none" else MappedFiles(run.path)
