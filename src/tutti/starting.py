"""From a configuration to a run that may start: its text, a value for every `auto`, and every refusal that can come
before a worker starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tutti import data, models
from tutti.config import Config, load_config
from tutti.config.fields import bytes_of
from tutti.core.errors import CheckpointError, ConfigError
from tutti.core.hold import held
from tutti.core.rundir import RunDirectory
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples, prepare_examples
from tutti.data.tokenizing import Use
from tutti.hardware import usable_cores
from tutti.models.tuning import has_adapters, has_prompt, is_plain, tune
from tutti.observe import check_trackers
from tutti.observe.alerts import receivers_of
from tutti.package.filler import require_masks
from tutti.parallel import Limits, check_layout, limits_of, limits_with_head, pick_device, sharded_only
from tutti.parallel.memory import MemoryModel
from tutti.parallel.thrift import check_offload, choose_thrift, possible_offloads, ways
from tutti.resolve import Facts, Resolved, resolve
from tutti.sync import check_sync
from tutti.tasks import ByContrast, Manner, find_manner, make_text_task
from tutti.tasks.contrast import say_head
from tutti.train.checkpoints.retention import entries
from tutti.train.contrast import samples_to_judge
from tutti.train.labelled import blueprint_of, has_head, reader_of
from tutti.train.language import source_of
from tutti.train.masked import masked_blueprint, masked_source, samples_of
from tutti.train.precision import DTYPES

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def prepare(config: Config, *, say: Say = _silent) -> Prepared | PreparedExamples:
    """Read, clean, split, tokenize and store the text, or the labelled examples, of `config`; found again by content.

    Raises:
        DataError: the text is missing, broken or too small.
    """
    config = with_tokenizer(config)
    return prepare_labelled(config, say) if config.task.labelled else prepare_text(config, say)


def prepare_text(config: Config, say: Say = _silent) -> Prepared:
    """The text of `config`, as `prepare` does it."""
    use: Use = "masks" if config.task.masked else "infill" if config.task.infill else "text"
    return data.prepare(config.data, workers=usable_cores(), say=say, use=use, remember=config.remember)


def prepare_labelled(config: Config, say: Say = _silent) -> PreparedExamples:
    """The labelled examples of `config`, as `prepare` does it."""
    return prepare_examples(config.data, make_text_task(config.task), reader_of(config), say, config.remember)


def with_tokenizer(config: Config) -> Config:
    """`config` with a tokenizer: `auto` is the one that its model was trained with."""
    if config.data.tokenizer != "auto":
        return config
    tokenizer = "bpe"
    if config.model.path is not None and not config.model.from_scratch:
        directory = models.model_directory(Path(config.model.path).expanduser())
        tokenizer = str(directory) if (directory / "tokenizer.json").is_file() else "bpe"
    return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": tokenizer})})


def check_run(run: RunDirectory, config: Config, resume: bool) -> Config:
    """`config` as run `run` goes by it. Raises a TuttiError where it may not start, or go on so."""
    receivers_of(config.alerts.model_dump())  # whose addresses may stand in the environment
    check_trackers(config.trackers)
    if not resume:
        run.refuse_existing()
        return config
    run.require()
    with held(run.path, "training there"):
        pass  # said now, not when everything is prepared
    former = load_config(run.config)
    merged = continued(config, former)
    for section, key in _FIXED:
        new, old = (getattr(getattr(whole, section), key) for whole in (merged, former))
        if new != old:
            raise CheckpointError(
                f"run '{run.name}' was started with {section}.{key} = {old}, not {new}",
                "leave that as it was, or start a new run with name=OTHER",
            )
    return merged


#: What a run is: with another value, what was learnt so far is of no use, or samples would be lost or seen twice.
_FIXED = (
    *(("model", "size"), ("model", "path"), ("model", "config"), ("data", "sequence")),
    *(("train", "batch"), ("train", "optimizer"), ("train", "seed")),
    ("train", "average"),
)


def continued(config: Config, former: Config) -> Config:
    """`config` for a resume: what it leaves to us stays as it was, but for what follows from the machines."""
    chosen = former.model_dump()
    wanted = config.model_dump()

    def keep(new: Any, old: Any) -> Any:
        if isinstance(new, dict) and isinstance(old, dict):
            return {key: keep(value, old.get(key)) for key, value in new.items()}
        return old if new == "auto" else new

    merged = keep(wanted, chosen)
    merged["replicas"] = wanted["replicas"]
    merged["train"]["micro_batch"] = wanted["train"]["micro_batch"]
    merged["memory"] = wanted["memory"]
    if wanted["train"]["steps"] == "auto":  # what `epochs` came to stays as it was
        merged["train"]["epochs"] = None
    return Config.model_validate(merged)


def start_run(
    config: Config,
    say: Say,
    processes: int | None = None,
    *,
    continues: RunDirectory | None = None,
    groups: int = 1,
) -> tuple[Resolved, Prepared | PreparedExamples]:
    """Everything that can be known before a worker starts: the text, and a value for every `auto`.

    `continues`: the run whose text this must be; `groups`: runs that share this machine.
    """
    config = with_tokenizer(config)
    if config.task.masked:
        return _start_masked(config, say, processes, continues, groups)
    if has_head(config):
        return _start_labelled(config, say, processes, continues, groups)
    prepared: Prepared | PreparedExamples
    if config.task.labelled:
        prepared = prepare_labelled(config, say)
        samples, validation = (prepared.rows(part) for part in ("train", "validation"))
        fingerprint = f"{prepared.fingerprint} train"
    else:
        prepared = prepare_text(config, say)
        prepared.require(config.data.sequence)
        samples, validation = (
            prepared.samples(part, config.data.sequence) for part in ("train", "validation")
        )
        train = source_of(config, prepared, "train")
        assert train is not None, "prepare refuses text without a part to train on"
        fingerprint = train.fingerprint
    if continues is not None:
        _refuse_other_data(continues, fingerprint)
    # Laid out here once, so that a model that cannot be is refused before a worker starts.
    blueprint = models.draw_blueprint(
        config.model,
        vocabulary=prepared.vocabulary,
        sequence=config.data.sequence,
        seed=config.train.seed,
        end_token=prepared.end_token,
    )
    model = blueprint.lay_out()
    blueprint.check_weights()
    manner = find_manner(blueprint.twin())
    parameters = models.count_parameters(model).total
    if isinstance(prepared, Prepared):
        config = config.model_copy(update={"data": prepared.resolved(config.data)})
    facts = Facts(
        parameters,
        config.data.sequence,
        validation,
        samples=samples,
        labelled=config.task.labelled,
        pretrained=blueprint.directory is not None,
        processes=processes,
        groups=groups,
    )
    resolved = resolve(config, facts)
    resolved.choices[:0] = [*prepared.choices, *blueprint.choices]
    _check_agreement(resolved.config, processes)
    assert isinstance(resolved.config.replicas, int)
    samples = int(resolved.config.train.batch) // resolved.config.replicas
    check_layout(config.layout, limits_of(model, manner, samples))
    _check_tuning(resolved.config, model)
    _spare_memory(config, resolved, blueprint, manner, samples)
    return resolved, prepared


def _start_labelled(
    config: Config, say: Say, processes: int | None, continues: RunDirectory | None, groups: int
) -> tuple[Resolved, PreparedExamples]:
    """`start_run` for labelled examples."""
    prepared = prepare_labelled(config, say)
    if continues is not None:
        _refuse_other_data(continues, f"{prepared.fingerprint} train")
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


def _start_masked(
    config: Config, say: Say, processes: int | None, continues: RunDirectory | None, groups: int
) -> tuple[Resolved, Prepared]:
    """`start_run` for a masked language model."""
    prepared = prepare_text(config, say)
    train = masked_source(config, prepared, "train")
    assert train is not None, "prepare refuses text without a part to train on"
    samples = samples_of(config, prepared)
    if continues is not None:
        _refuse_other_data(continues, train.fingerprint)
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
    _check_agreement(resolved.config, facts.processes)
    assert isinstance(resolved.config.replicas, int)
    check_layout(config.layout, limits(int(resolved.config.train.batch) // resolved.config.replicas))
    _check_tuning(resolved.config, model)
    _check_cut(resolved.config)
    return resolved


def _check_cut(config: Config) -> None:
    """Raise ConfigError where something is put on a model with a head that `layout.tensor` would cut through."""
    if config.layout.tensor == 1:
        return
    beside = {
        "tune.quantize": config.tune.quantize is not None,
        "remember.ewc": bool(config.remember.ewc),
        "distil.hidden": bool(config.distil.hidden),
    }
    if through := [name for name, wanted in beside.items() if wanted]:
        raise ConfigError(
            f"{' and '.join(through)} look at whole matrices, which layout.tensor cuts",
            "use layout: {shard: …}",
        )


def _check_tuning(config: Config, model: PreTrainedModel) -> None:
    """Raise ConfigError or ModelError unless `model` (on the meta device) can learn as the resolved `config` says."""
    if is_plain(config):
        return
    layout = config.layout
    whole_first = config.task.asks and config.tune.method == "last"  # frozen as it is, cut then
    if layout.tensor * layout.pipeline * layout.context > 1 and not whole_first:
        raise ConfigError(
            f"adapters are put on the whole model, which layout {layout.sizes} cuts before it exists",
            "use layout: {shard: …}",
        )
    if config.memory.budget is not None:
        raise ConfigError(
            "memory.budget reckons with models that have no adapters",
            "set memory.recompute, memory.offload or train.micro_batch instead",
        )
    if has_prompt(config) and not has_head(config):
        raise ConfigError(
            "tune.method: prompt would have to stand before every text, and a causal model learns from windows in "
            "which several stand side by side",
            "choose tune.method: lora, or an encoder-decoder",
        )
    tune(model, config)


def _check_agreement(config: Config, processes: int | None) -> None:
    """Raise ConfigError unless copies can agree as the resolved `config` says, in a world of so many `processes`."""
    check_sync(
        config.sync, config.train.precision, optimizer=config.train.optimizer, parts=config.layout.ranks
    )
    if processes is not None and config.sync.policy == "server":
        raise ConfigError(
            "sync: policy server needs a process of its own, which torchrun does not start",
            "start the run with `tutti train` alone, or choose another policy",
        )


def _spare_memory(
    config: Config, resolved: Resolved, blueprint: models.Blueprint, manner: Manner, samples: int
) -> None:
    """Within `memory.budget`: what is computed again, kept elsewhere, and how many samples at once."""
    memory, train, device = config.memory, resolved.config.train, pick_device()
    check_offload(memory.offload, device, config.layout, train.optimizer)
    if memory.budget is None:
        return
    assert isinstance(train.micro_batch, int) and isinstance(resolved.config.replicas, int)
    need = MemoryModel(
        blueprint.lay_out(),
        blueprint.twin(),
        manner,
        config.layout,
        config.data.sequence,
        train.optimizer,
        resolved.config.replicas,
        max(1, samples // config.layout.shard),
        None if train.precision == "fp32" else DTYPES[train.precision],
        device,
    )
    smaller = config.train.micro_batch == "auto"
    allowed = ways(
        memory.recompute,
        memory.offload,
        train.micro_batch,
        smaller=smaller,
        offloads=possible_offloads(device, config.layout, train.optimizer),
    )
    thrift, why = choose_thrift(need, bytes_of(memory.budget), allowed)
    resolved.choices.append(
        f"memory.recompute = {thrift.recompute}, memory.offload = {thrift.offload}, "
        f"train.micro_batch = {thrift.micro_batch}: {why}"
    )
    resolved.config = resolved.config.model_copy(
        update={
            "memory": memory.model_copy(update={"recompute": thrift.recompute, "offload": thrift.offload}),
            "train": train.model_copy(update={"micro_batch": thrift.micro_batch}),
        }
    )


def _refuse_other_data(run: RunDirectory, fingerprint: str) -> None:
    saved = (entry.manifest for entry in entries(run.checkpoints) if entry.manifest is not None)
    newest = next(saved, None)
    if newest is not None and newest.meta["identity"]["data"] != fingerprint:
        raise text_has_changed(run.path)


def text_has_changed(run: Path) -> CheckpointError:
    """The refusal of a text that is not the one `run` was trained on."""
    return CheckpointError(
        f"the text of {run} has changed since it was trained",
        "restore the text, or train anew under another name",
    )


def printer(console: bool, label: str = "") -> Say:
    """What says what is being done: lines that begin with `label`, or nothing."""
    return (lambda message: print(f"{label}{message}", flush=True)) if console else _silent
