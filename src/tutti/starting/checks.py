"""What is asked for that a model, its copies or its memory cannot give: refused before a worker starts."""

from __future__ import annotations

from transformers import PreTrainedModel

from tutti import models
from tutti.config import Config
from tutti.config.fields import bytes_of
from tutti.core.errors import ConfigError
from tutti.models.architecture import has_dropout
from tutti.models.tuning import has_prompt, is_plain, tune
from tutti.parallel import pick_device
from tutti.parallel.memory import MemoryModel
from tutti.parallel.thrift import check_offload, choose_thrift, possible_offloads, ways
from tutti.resolve import Resolved
from tutti.sync import check_sync
from tutti.tasks import Manner
from tutti.train.labelled import has_head
from tutti.train.precision import DTYPES


def check_agreement(config: Config, processes: int | None) -> None:
    """Raise ConfigError unless copies can agree as the resolved `config` says, in a world of so many `processes`."""
    check_sync(
        config.sync, config.train.precision, optimizer=config.train.optimizer, parts=config.layout.ranks
    )
    if processes is not None and config.sync.policy == "server":
        raise ConfigError(
            "sync: policy server needs a process of its own, which torchrun does not start",
            "start the run with `tutti train` alone, or choose another policy",
        )


def check_tuning(config: Config, model: PreTrainedModel) -> None:
    """Raise ConfigError or ModelError unless `model` (on the meta device) can learn as the resolved `config` says."""
    if config.train.layer_decay != 1 and model.config.is_encoder_decoder:
        raise ConfigError(
            f"train.layer_decay counts blocks from a model's beginning, and {model.config.model_type} has two: of what "
            "reads and of what writes",
            "leave it out",
        )
    if config.regularise.r_drop and not (has_dropout(model.config) or config.tune.dropout):
        raise ConfigError(
            f"regularise.r_drop compares two passes that differ by what dropout leaves out, and this "
            f"{model.config.model_type} has no dropout",
            "set model.dropout as well, to 0.1 for example, or leave regularise.r_drop out",
        )
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


def check_cut(config: Config) -> None:
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


def spare_memory(
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
        resolved.config.sync,
        average=bool(train.average),
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
