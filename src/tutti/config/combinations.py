"""What goes with what: the rules that no section can judge by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutti.config.clean import CleanConfig
from tutti.config.task import DistilConfig, RegulariseConfig
from tutti.config.tuned import check_remember, check_tune

if TYPE_CHECKING:
    from tutti.config.schema import Config


def check_combinations(config: Config) -> None:
    """Raise ValueError where parts of `config` do not go together, saying which."""
    _check_learning(config)
    check_tune(config)
    check_remember(config)
    _check_agreement(config)
    _check_replicas(config)
    _check_batch_warmup(config)


def _check_learning(config: Config) -> None:
    if config.train.layer_decay != 1 and config.layout.pipeline > 1:
        raise ValueError("train.layer_decay counts the blocks of a whole model, which layout.pipeline cuts")
    if config.train.head_rate not in ("auto", 1.0) and (
        not config.task.learns_head or config.tune.method == "prompt"
    ):
        raise ValueError(
            "train.head_rate is for heads that learn with the rest, of task.kind classify, relate, tag and answer; "
            "not with task.contrast or tune.method: prompt"
        )
    own, task, teachers = config.regularise, config.task, config.distil.teachers
    if config.recipe == "auto" and not task.labelled:
        raise ValueError(f"recipe: auto is for labelled examples, and task.kind is {task.kind}; leave it out")
    if not teachers and config.distil != DistilConfig():
        raise ValueError("distil needs a model that teaches: distil.teacher")
    if config.data.extra_source is not None and not task.labelled:
        raise ValueError("data.extra_source is for labelled examples; list all texts in data.source")
    if task.labelled and (config.data.clean != CleanConfig() or config.data.weights is not None):
        raise ValueError("data.clean and data.weights are for raw text, not for labelled examples")
    if own != RegulariseConfig() and not task.asks:
        raise ValueError("regularise is for models that are asked (see task.kind), so far")
    if (own.word_drop or own.word_swap) and task.kind != "classify":
        raise ValueError(
            f"regularise.word_drop and regularise.word_swap are for task.kind classify: those of {task.kind} "
            "are about the places of words"
        )
    if own.label_smoothing and task.kind == "answer":
        raise ValueError(
            "regularise.label_smoothing has no meaning for task.kind answer, whose labels are places"
        )
    if teachers and task.masked:
        raise ValueError("distil is not for task.kind masked_language_model, so far")
    if teachers and not task.asks:
        _check_teachers_of_writers(config)
    if task.kind == "embed" and own != RegulariseConfig():
        raise ValueError("regularise is not for task.kind embed, so far")
    if task.contrast:
        _check_contrast(config)
    if config.distil.hidden and task.kind == "recommend":
        raise ValueError("distil.hidden is for encoders, not for task.kind recommend")
    if teachers and (own.r_drop or own.adversarial):
        raise ValueError("distil, regularise.r_drop and regularise.adversarial exclude each other")


def _check_teachers_of_writers(config: Config) -> None:
    """What they predict is compared with whole logits of whole samples."""
    split = [name for name in ("pipeline", "tensor", "context") if getattr(config.layout, name) > 1]
    if split:
        raise ValueError(
            f"layout.{split[0]} splits samples or logits over ranks, and what teachers predict is compared with "
            "whole logits of whole samples; use shard"
        )
    if config.distil.hidden:
        raise ValueError("distil.hidden is for encoders, not for models that write")
    if config.groups != 1:
        raise ValueError("distil and groups, in which models teach each other, exclude each other")
    if config.memory.budget is not None:
        raise ValueError(
            "memory.budget does not count teachers; leave it out, and set memory.recompute and memory.offload instead"
        )


def _check_contrast(config: Config) -> None:
    """The head is fitted when the rest has learned."""
    own = config.regularise
    if own.label_smoothing or own.r_drop or own.adversarial or config.distil.teachers:
        raise ValueError(
            "task.contrast compares texts, so regularise.label_smoothing, regularise.r_drop, "
            "regularise.adversarial and distil, which are about what is said of one text, are not for it"
        )
    if config.remember.ewc:
        raise ValueError("remember.ewc holds a head too, which task.contrast makes anew; set one of them")
    if config.tune.method not in ("full", "last") or config.tune.quantize is not None:
        raise ValueError(
            "task.contrast fits the head when the rest has learned; tune.method must be full or last, without "
            "tune.quantize"
        )


def _check_agreement(config: Config) -> None:
    sync = config.sync
    if config.train.average and sync.policy == "server":
        raise ValueError("train.average is not for sync.policy server, where the optimizer is elsewhere")
    if config.memory.budget is not None and "auto" in (sync.policy, sync.codec):
        raise ValueError(
            "memory.budget counts what sync keeps of the model, which sync.policy and sync.codec decide; say both, or "
            "leave memory.budget out"
        )
    if sync.implementation == "ddp" and config.layout.ranks > 1:
        raise ValueError(
            "sync.implementation: ddp needs a whole copy on every rank, but layout splits one over "
            f"{config.layout.ranks}; use implementation: buckets"
        )
    if sync.policy == "auto" and sync.implementation != "auto":
        raise ValueError("sync.implementation belongs to allreduce, which sync.policy: auto may not choose")
    if sync.policy != "allreduce" and sync.implementation != "auto":
        raise ValueError(f"sync.implementation belongs to allreduce; policy {sync.policy} has only one")


def _check_replicas(config: Config) -> None:
    replicas, batch = config.replicas, config.train.batch
    if config.each and len(config.each) != replicas:
        raise ValueError(
            f"each lists {len(config.each)} replicas, but replicas is {replicas}: one entry for each of them"
        )
    if replicas == "auto":
        return
    if config.sync.min_replicas > replicas:
        raise ValueError(
            f"sync.min_replicas is {config.sync.min_replicas}, but there are only {replicas} replicas"
        )
    if batch != "auto" and batch < replicas * config.layout.shard:
        raise ValueError(
            f"train.batch is {batch}: fewer samples than the "
            f"{replicas * config.layout.shard} workers that share them out"
        )


def _check_batch_warmup(config: Config) -> None:
    """Every replica has to know how many samples a step takes, whoever comes and goes."""
    warmup, batch, replicas = config.train.batch_warmup, config.train.batch, config.replicas
    if warmup is None:
        return
    if batch != "auto" and warmup.start >= batch:
        raise ValueError(
            f"train.batch_warmup.start is {warmup.start}, and has to be less than train.batch, {batch}"
        )
    if config.sync.policy != "allreduce":
        raise ValueError(
            "train.batch_warmup needs sync.policy: allreduce, whose replicas make the same steps, not "
            f"{config.sync.policy}"
        )
    if config.groups != 1:
        raise ValueError(
            "train.batch_warmup and groups, which take the same samples in turn, exclude each other"
        )
    if replicas != "auto" and warmup.start < replicas * config.layout.shard:
        raise ValueError(
            f"train.batch_warmup.start is {warmup.start}: fewer samples than the "
            f"{replicas * config.layout.shard} workers that share them out"
        )
