"""Runs of models that are whole in memory before they are split: with a head for labels, or for what is hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from transformers import PreTrainedModel

from tutti import models
from tutti.config import Config
from tutti.core.errors import ConfigError
from tutti.core.rundir import RunDirectory
from tutti.core.say import Say
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples
from tutti.models.architecture import has_dropout
from tutti.models.tuning import has_adapters
from tutti.package.filler import require_masks
from tutti.parallel import Limits, check_layout, limits_with_head, pick_device, sharded_only
from tutti.parallel.thrift import check_offload
from tutti.resolve import Facts, Resolved, resolve
from tutti.starting.checks import check_agreement, check_cut, check_tuning
from tutti.starting.preparing import prepare_labelled, prepare_text
from tutti.starting.resuming import refuse_other_data
from tutti.tasks import ByContrast, make_text_task
from tutti.tasks.contrast import say_head
from tutti.train.contrast import samples_to_judge
from tutti.train.labelled import blueprint_of
from tutti.train.masked import masked_blueprint, masked_source, samples_of


def start_labelled(
    config: Config, say: Say, processes: int | None, continues: RunDirectory | None, groups: int
) -> tuple[Resolved, PreparedExamples]:
    """`start_run` for labelled examples."""
    prepared = prepare_labelled(config, say)
    if continues is not None:
        refuse_other_data(continues, f"{prepared.fingerprint} train")
    blueprint = blueprint_of(config, prepared)
    if config.remember.ewc and blueprint.new_head:
        raise ConfigError(
            f"{config.model.path} has no head for these labels, so it knows nothing of the examples in "
            "remember.source that remember.ewc could hold",
            "name the export of a run that learned them in model.path, or leave remember.ewc at 0",
        )
    model = blueprint.lay_out()
    parameters = models.count_parameters(model).total
    train, validation = prepared.parts["train"], prepared.parts.get("validation")
    group, judged = make_text_task(config.task).group, validation.rows if validation is not None else 0
    if config.task.contrast:
        blueprint.choices.append(say_head(model))
        group = ByContrast(config.task, train.rows).group
        validation_samples = samples_to_judge(train.rows, judged, group)
        if config.evaluate.samples not in ("auto", validation_samples):
            raise ConfigError(
                "evaluate.samples: with task.contrast a validation takes all training examples, to fit a head on",
                "leave it out",
            )
    else:
        validation_samples = -(-judged // group)
    facts = Facts(
        parameters,
        max(1, round(group * train.tokens / train.rows)),
        validation_samples,
        samples=max(1, train.rows // group),
        together=group,
        labelled=True,
        pretrained=blueprint.directory is not None,
        new_head=blueprint.directory is not None and blueprint.new_head and config.task.learns_head,
        dropout=has_dropout(model.config) or bool(config.tune.dropout),
        processes=processes,
        groups=groups,
    )
    kind = model.config.model_type
    writers = (
        f"{kind} reads with one stack of blocks and writes with another, which only `shard` can split, so far"
    )

    def limits(share: int) -> Limits:
        return limits_with_head(model, share) if config.task.asks else sharded_only(kind, writers, share)

    return _resolve_with_head(config, facts, [*prepared.choices, *blueprint.choices], model, limits), prepared


def start_masked(
    config: Config, say: Say, processes: int | None, continues: RunDirectory | None, groups: int
) -> tuple[Resolved, Prepared]:
    """`start_run` for a masked language model."""
    prepared = prepare_text(config, say)
    train = masked_source(config, prepared, "train")
    assert train is not None, "prepare refuses text without a part to train on"
    samples = samples_of(config, prepared)
    if continues is not None:
        refuse_other_data(continues, train.fingerprint)
    blueprint = masked_blueprint(config, prepared)
    require_masks(config.evaluate.prompts, train.marks.written)
    if has_adapters(config) and blueprint.new_head:
        raise ConfigError(
            f"{config.model.path} has no head that guesses, and tune.method: {config.tune.method} would leave a new "
            "one as it is drawn",
            "set tune.method: full, or last",
        )
    model = blueprint.lay_out()
    facts = Facts(
        models.count_parameters(model).total,
        config.data.sequence,
        samples["validation"],
        samples=samples["train"],
        pretrained=blueprint.directory is not None,
        processes=processes,
        groups=groups,
    )
    config = config.model_copy(update={"data": prepared.resolved(config.data)})
    both_ways = "a masked language model looks both ways, for which it needs whole sequences and rows, so far"

    def limits(share: int) -> Limits:
        found = limits_with_head(model, share)
        return dataclasses.replace(found, why_not_context=both_ways, why_not_pipeline=both_ways)

    return _resolve_with_head(config, facts, [*prepared.choices, *blueprint.choices], model, limits), prepared


def _resolve_with_head(
    config: Config,
    facts: Facts,
    choices: list[str],
    model: PreTrainedModel,
    limits: Callable[[int], Limits],
) -> Resolved:
    """Every `auto` of `config`, whose model, on the meta device, is whole in memory before it is split.

    `choices`: that were made already. `limits`: of the model, for so many samples of a replica.

    Raises:
        ConfigError: it cannot be trained so.
    """
    if config.memory.budget is not None:
        raise ConfigError(
            "memory.budget is kept for causal language models only, so far",
            "set memory.recompute, memory.offload or train.micro_batch instead",
        )
    check_offload(config.memory.offload, pick_device(), config.layout, config.train.optimizer)
    resolved = resolve(config, facts)
    resolved.choices[:0] = choices
    check_agreement(resolved.config, facts.processes)
    assert isinstance(resolved.config.replicas, int)
    check_layout(config.layout, limits(int(resolved.config.train.batch) // resolved.config.replicas))
    check_tuning(resolved.config, model)
    check_cut(resolved.config)
    return resolved
