"""Every `auto` becomes a value, and the reason is kept: what was chosen is printed and written into the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from tutti.config import Config
from tutti.config.agreement import SyncConfig
from tutti.config.training import BatchWarmup
from tutti.core.errors import ConfigError
from tutti.hardware import fastest_precision, usable_cores
from tutti.parallel import pick_device
from tutti.sync.batches import BatchSizes
from tutti.sync.diloco import outer_learning_rate, outer_momentum
from tutti.sync.ladder import rungs
from tutti.train.optimizer import auto_learning_rate, relative_rate
from tutti.train.recipe import (
    ORDINARY_BATCH,
    against_learning_by_heart,
    choose_batch,
    choose_head_rate,
    choose_steps,
    tuning_rate,
)

#: Tokens that a worker computes at once: more does not run faster, and activations grow with it.
_MICRO_BATCH_TOKENS = {"cpu": 4096, "accelerator": 32768}
#: A pipeline stands still for (stages - 1) ÷ micro-batches of the time.
_MICRO_BATCHES_PER_STAGE = 4
#: λ of DC-ASGD.
DELAY_COMPENSATION = 0.04
#: Validations and saves over a run, validation samples a time, and warm-up, where the user leaves them to us.
_TIMES = 10
_VALIDATION_SAMPLES = 256
_WARMUP_SHARE, _WARMUP_MOST = 0.05, 1000


@dataclass
class Resolved:
    """A configuration without `auto`, what was chosen for it, and the threads of each worker."""

    config: Config
    threads: int
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """What the choices depend on, of the job: parameters, units in a sample, validation samples there are."""

    parameters: int
    tokens_per_sample: int
    validation_samples: int
    #: A world that was started already (torchrun) has so many processes.
    processes: int | None = None
    #: Runs that share this machine out among them.
    groups: int = 1
    #: Samples in an epoch to train on; 0: nobody has counted.
    samples: int = 0
    #: Texts (or pairs of them) that are one sample, because they are judged by each other.
    together: int = 1
    #: Whether labelled examples are learned, and by a model that knows something already.
    labelled: bool = False
    pretrained: bool = False
    #: Whether the pretrained model is asked by a head that knows nothing yet.
    new_head: bool = False
    #: Whether two passes over a sample differ.
    dropout: bool = False


def resolve(config: Config, facts: Facts) -> Resolved:
    """Replace every `auto` of `config`."""
    choices: list[str] = []

    def choose(key: str, given: Any, value: Any, reason: str) -> Any:
        if given != "auto":
            return given
        choices.append(
            f"{key} = {value:g}: {reason}" if isinstance(value, float) else f"{key} = {value}: {reason}"
        )
        return value

    config, said = against_learning_by_heart(
        config, facts.samples * facts.together, pretrained=facts.pretrained, dropout=facts.dropout
    )
    choices += said
    passes = 2 if config.recipe == "auto" and config.regularise.r_drop else 1
    train, parts = config.train, config.layout.ranks
    if train.patience is not None and not facts.validation_samples:
        raise ConfigError(
            "train.patience waits for a better validation, and nothing is kept aside to validate on",
            "keep something aside, for example with data.validation=0.05, or leave train.patience out",
        )
    batch, why = choose_batch(facts.together)
    replicas, reason = _replicas(config, facts, batch if train.batch == "auto" else train.batch)
    replicas = choose("replicas", config.replicas, replicas, reason)
    if batch < (workers := replicas * config.layout.shard):
        batch, why = workers, "a sample for each worker"
    if train.batch != "auto" or batch != ORDINARY_BATCH:
        batch = choose("train.batch", train.batch, batch, why)
    if train.batch != "auto" and replicas > 1 and batch < workers:  # one replica: layout is to blame
        raise ConfigError(
            f"train.batch is {batch}: fewer samples than the {workers} workers that share them out",
            f"set train.batch to {workers} or more, or take fewer workers",
        )
    if train.batch_warmup is not None:
        choices.append(_batch_warmup(train.batch_warmup, batch, workers))
    device = pick_device()
    threads = max(1, usable_cores() // facts.groups // max(1, facts.processes or replicas * parts))
    if train.precision == "auto":
        precision, reason = fastest_precision(device, threads=threads)
        precision = choose("train.precision", "auto", precision, reason)
    else:
        precision = train.precision
    share = -(-batch // (replicas * config.layout.shard))
    kind = "cpu" if device.type == "cpu" else "accelerator"
    at_once = max(1, _MICRO_BATCH_TOKENS[kind] // facts.tokens_per_sample)
    if share <= at_once and replicas > 1 and config.memory.budget is None:
        # A second pass for a few samples would cost as much as the first.
        micro = min(batch, share + share // 2)
        reason = (
            f"the {share} samples that a worker has in a step, half as many again where it is the faster one"
        )
    else:
        micro = min(share, at_once)
        reason = f"of the {share} samples that a worker has in a step, about {_MICRO_BATCH_TOKENS[kind]} tokens at once"
    stages = config.layout.pipeline
    if stages > 1 and share < _MICRO_BATCHES_PER_STAGE * stages * micro:
        micro = max(1, share // (_MICRO_BATCHES_PER_STAGE * stages))
        reason = f"of the {share} samples of a step, so that {stages} stages wait little for each other"
    micro = choose("train.micro_batch", train.micro_batch, micro, reason)
    if facts.pretrained:
        rate, reason = tuning_rate(facts.parameters, config.tune.method)
        if train.optimizer == "adafactor":
            rate, reason = relative_rate(rate), f"{reason}; relative to the weights, for adafactor"
    else:
        rate, reason = auto_learning_rate(facts.parameters, batch * facts.tokens_per_sample, train.optimizer)
    rate = choose("train.learning_rate", train.learning_rate, rate, reason)
    of_adamw = rate / relative_rate(1.0) if train.optimizer == "adafactor" else rate
    head_rate, reason = choose_head_rate(config.tune.method, of_adamw, new=facts.new_head)
    if train.head_rate != "auto" or head_rate != 1:  # all learn alike: nothing to tell
        head_rate = choose("train.head_rate", train.head_rate, head_rate, reason)
    if train.steps == "auto":
        sizes = BatchSizes.of(train, batch)
        steps, reason = choose_steps(
            train.epochs, facts.samples, sizes, labelled=facts.labelled, passes=passes
        )
        steps = choose("train.steps", "auto", steps, reason)
    else:
        steps = train.steps
    warmup = min(_WARMUP_MOST, max(1, round(_WARMUP_SHARE * steps)))
    warmup = choose("train.warmup", train.warmup, warmup, "5 % of the steps, at most 1000")
    every = max(1, steps // _TIMES)
    most = facts.validation_samples if facts.labelled else _VALIDATION_SAMPLES
    samples = min(most, max(1, facts.validation_samples))
    sync, said = _sync(config.sync, replicas, precision, steps, started=facts.processes is not None)
    choices += said
    memory = config.memory
    if memory.budget is None:  # with a budget, `api.py` chooses: it knows the model
        named = {"recompute": memory.recompute, "offload": memory.offload}
        memory = memory.model_copy(update={k: "none" if v == "auto" else v for k, v in named.items()})
    updates = {
        "replicas": replicas,
        "memory": memory,
        "sync": sync,
        "train": train.model_copy(
            update={
                "batch": batch,
                "steps": steps,
                "epochs": None,
                "precision": precision,
                "micro_batch": micro,
                "learning_rate": rate,
                "head_rate": head_rate,
                "warmup": warmup,
            }
        ),
        "evaluate": config.evaluate.model_copy(
            update={
                "every": choose(
                    "evaluate.every", config.evaluate.every, every, "ten validations over the run"
                ),
                "samples": choose(
                    "evaluate.samples",
                    config.evaluate.samples,
                    samples,
                    f"of {facts.validation_samples} that there are",
                ),
            }
        ),
        "checkpoint": config.checkpoint.model_copy(
            update={
                "every": choose("checkpoint.every", config.checkpoint.every, every, "ten saves over the run")
            }
        ),
    }
    return Resolved(config.model_copy(update=updates), threads, choices)


def _batch_warmup(warmup: BatchWarmup, batch: int, workers: int) -> str:
    """What it does, in words.

    Raises:
        ConfigError: it does not go with the batch, or the workers.
    """
    if not workers <= warmup.start < batch:
        raise ConfigError(
            f"train.batch_warmup.start is {warmup.start}, with {workers} workers that share a step's samples out and "
            f"train.batch = {batch}",
            f"choose one from {workers} to {batch - 1}" if workers < batch else "set a larger train.batch",
        )
    return f"train.batch_warmup: {warmup.start} samples in the first step, {batch} from step {warmup.steps + 1:,} on"


def _sync(
    sync: SyncConfig, replicas: int, precision: str, steps: int, *, started: bool
) -> tuple[SyncConfig, list[str]]:
    """`sync` without what can be chosen now, and what was; the rest is for measurements to decide."""
    if sync.undecided:
        ladder = rungs(sync, precision, steps)
        if replicas > 1 and not started:
            return sync, []
        if replicas > 1:
            raise ConfigError(
                "sync: auto needs Tutti's own launcher, which measures before the run; these processes were started "
                "by another",
                "say what to take, for example sync=allreduce sync.codec=bf16",
            )
        settled, said = settle(ladder[0].sync, replicas, precision, steps, started=started)
        return settled, [f"sync = {ladder[0].name}: with one replica there is nobody to agree with", *said]
    return settle(sync, replicas, precision, steps, started=started)


def settle(
    sync: SyncConfig, replicas: int, precision: str, steps: int, *, started: bool = False
) -> tuple[SyncConfig, list[str]]:
    """A decided `sync` of a run of `steps` with nothing left open, and the reasons for what was chosen."""
    updates: dict[str, Any] = {}
    said: list[str] = []
    updates |= _outer(sync, steps, said)
    if sync.every == "auto":  # policy allreduce, which has no rounds
        updates["every"] = SyncConfig.model_fields["every"].default
    if sync.policy == "allreduce" and sync.implementation == "auto":
        updates["implementation"] = "buckets"
        said.append(
            "sync.implementation = buckets: right with any layout and transport, and with parameters that get no "
            "gradient"
        )
    if sync.policy == "server" and sync.delay_compensation == "auto":
        prompt = sync.staleness == 0
        updates["delay_compensation"] = 0.0 if prompt else DELAY_COMPENSATION
        why = "gradients are not delayed" if prompt else "the value of Zheng et al. 2017"
        said.append(f"sync.delay_compensation = {updates['delay_compensation']}: {why}")
    if replicas > 1 and (sync.membership == "auto" or (started and sync.membership == "elastic")):
        how, why = _membership(sync, precision, pick_device().type, started=started)
        updates["membership"] = how
        said.append(f"sync.membership = {how}: {why}")
    return sync.model_copy(update=updates), said


def _outer(sync: SyncConfig, steps: int, said: list[str]) -> dict[str, float]:
    """DiLoCo's outer optimizer; of other policies what nobody asks for."""
    rounds = steps / sync.every if isinstance(sync.every, int) and sync.policy == "diloco" else math.inf
    momentum = outer_momentum(rounds) if sync.outer_momentum == "auto" else sync.outer_momentum
    rate = outer_learning_rate(momentum) if sync.outer_learning_rate == "auto" else sync.outer_learning_rate
    if sync.policy == "diloco" and (sync.outer_momentum, sync.outer_learning_rate) != (momentum, rate):
        said.append(
            f"sync.outer_momentum = {momentum:g}, sync.outer_learning_rate = {rate:g}: {rounds:.0f} rounds, and "
            "momentum should build up over a tenth of them"
        )
    return {"outer_momentum": momentum, "outer_learning_rate": rate}


def _membership(sync: SyncConfig, precision: str, device: str, *, started: bool) -> tuple[str, str]:
    if started:
        return "fixed", "a world that was started elsewhere has the processes that it has"
    if sync.policy == "allreduce":
        if sync.implementation == "ddp":
            return "fixed", "torch's DDP cannot change its members"
        if sync.overlap:
            return "fixed", "who joins or leaves would meet a gradient under way"
        if precision == "fp16":
            return "fixed", "a newcomer would not know the loss scale of fp16"
        if device != "cpu":
            return "fixed", f"on {device} gradients go through its own library, whose groups cannot change"
    return "elastic", "a replica that dies is replaced while the others go on"


def _replicas(config: Config, facts: Facts, batch: int) -> tuple[int, str]:
    parts = config.layout.ranks
    of_each = f" for each of {facts.groups} runs" if facts.groups > 1 else ""
    if facts.processes is not None:
        return max(1, facts.processes // parts), f"{facts.processes} processes were started"
    if torch.accelerator.is_available():
        devices = torch.accelerator.device_count() // facts.groups
        fitting = min(devices // parts, batch // config.layout.shard)
        return max(1, fitting), f"{devices} devices{of_each}, {parts} for each replica"
    cores = max(1, usable_cores() // facts.groups)
    fitting = max(1, min(cores // parts, batch // parts))
    return fitting, f"{cores} cores{of_each}; one thread a worker holds up better than several threads in one"
