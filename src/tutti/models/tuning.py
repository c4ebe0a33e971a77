"""How much of a trained model is changed: all of it, its last blocks, or small adapters beside its matrices (peft).

An adapted model is the model itself, with some of its linear layers replaced by peft's; so whatever handles a model
(layouts, sums between replicas, checkpoints) handles it. `merged` makes an ordinary model of it again, and
`save_adapters` writes the adapters alone, as `peft.PeftModel.from_pretrained` takes them.

A learned prompt changes no layer: it stands before what the model reads, so that is peft's wrapping of the model, which
nothing can merge.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tutti.config import Config
from tutti.core import ModelError
from tutti.models.adalora import RankAllocation, adalora_settings, kept_ranks
from tutti.models.adapters import Adapters, adapters_in, model_directory, note_base, peft_task
from tutti.models.blocks import find_blocks
from tutti.models.head_parts import head_modules
from tutti.models.ia3 import ia3_settings
from tutti.models.quantized import without_rounding
from tutti.models.weights import has_pooler

#: Methods whose adapters go on learning; those of others are merged first.
_GO_ON = ("lora", "ia3", "prompt")


@dataclass(frozen=True)
class Tuned:
    """`model`: the one that learns. `choices`: what the user should know. `allocation`: of rank that is not fixed."""

    model: nn.Module
    choices: list[str] = field(default_factory=list)
    allocation: RankAllocation | None = None


def tune(model: PreTrainedModel, config: Config) -> Tuned:
    """Let only that part of `model` learn that `config` says, in place. Adapters that `model.path` holds are put on.

    Adapters are drawn from `train.seed`, so that every worker draws the same.

    Raises:
        ModelError: this architecture cannot be tuned so.
    """
    method, given, choices = config.tune.method, given_adapters(config), list[str]()
    wrapped: Any = None
    if given is not None:
        with _dice(config):
            wrapped, with_head = given.put_on(model, peft_task(config.task.kind, model.config))
        goes_on = given.method == method
        if not goes_on:
            plain = merged(model)
            assert isinstance(plain, PreTrainedModel)
            model = plain
            model.requires_grad_(True)
        choices.append(
            f"model: the {given.method} adapters of {given.directory} "
            + ("go on learning, with their own settings" if goes_on else "are merged into it")
            + ("" if with_head else "; with a new head")
        )
    if method == "full":
        return Tuned(model, choices)
    learning: nn.Module = model
    allocation = None
    if method == "last":
        _freeze_all_but_last(model, config.tune.layers)
    else:
        wrapped = wrapped or _adapt(model, _settings(model, config), config)
        learning = wrapped if method == "prompt" else model
        allocation = RankAllocation(wrapped.base_model) if method == "adalora" else None
        if method == "prompt" and config.task.asks:
            _refuse_last_place(wrapped)
    trained = sum(p.numel() for p in learning.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in learning.parameters())
    choices.append(
        f"tune.method = {method}: {trained:,} of {whole:,} parameters learn ({100 * trained / whole:.2g} %)"
    )
    return Tuned(learning, choices, allocation)


def given_adapters(config: Config) -> Adapters | None:
    """The adapters that `model.path` holds, if it does.

    Raises:
        ModelError: they, or the model that they are for, cannot be used, or not with `tune.method`.
    """
    if config.model.path is None:
        return None
    given = adapters_in(Path(config.model.path).expanduser())
    if given is None:
        return None
    method = config.tune.method
    if config.model.from_scratch:
        raise ModelError(
            f"{given.directory} holds adapters, which mean nothing without the weights that they were learned on",
            "leave model.from_scratch out",
        )
    if given.method == method and method in _GO_ON:
        return given
    if method not in ("full", "last") or given.method == "prompt":
        ways = [f"tune.method: {given.method} to go on learning them"] if given.method in _GO_ON else []
        ways += ["full or last to merge them into the model first"] if given.method != "prompt" else []
        raise ModelError(
            f"{given.directory} holds adapters of method {given.method}, which tune.method: {method} cannot begin with",
            "set " + ", or ".join(ways),
        )
    return given


def is_plain(config: Config) -> bool:
    """Whether the model of `config` learns whole, and begins as its directory has it."""
    return config.tune.method == "full" and given_adapters(config) is None


def merged(model: nn.Module) -> nn.Module:
    """`model` as an ordinary one: without adapters, what they learned added to its own weights, and with layers that
    do not round (`tune.quantize`); the same object where it is one already.

    Raises:
        ModelError: it has a learned prompt, which is no weight of it.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(model, PeftModel):
        raise ModelError(
            "a learned prompt stands before what a model reads, and cannot be merged into it",
            "use its export with peft, or tune with another method, such as lora",
        )
    if not any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in model.modules()):
        return without_rounding(model)  # adapters and rounding exclude each other
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            plain.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return plain


def save_adapters(model: nn.Module, fresh: PreTrainedModel, config: Config, directory: Path) -> None:
    """Write the adapters of `model` alone to `directory`. `fresh`: a model like it that has none yet."""
    given = given_adapters(config)
    settings = _settings(fresh, config) if given is None else given.settings()
    settings.task_type = peft_task(config.task.kind, fresh.config)
    wrapped = _adapt(fresh, settings, config)
    (wrapped if config.tune.method == "prompt" else wrapped.base_model.model).load_state_dict(
        model.state_dict()
    )
    if config.tune.method == "adalora":
        settings.rank_pattern = kept_ranks(model)
    assert config.model.path is not None, "nothing else is adapted"
    base = Path(config.model.path).expanduser() if given is None else given.base
    settings.base_model_name_or_path = str(base.absolute())
    with warnings.catch_warnings():
        # What lost all its rank looks to peft like a shard, and AdaLoRA's names are not those of LoRA's pattern.
        warnings.filterwarnings("ignore", message=".*invalid shape")
        warnings.filterwarnings("ignore", message=".*rank_pattern keys did not match")
        wrapped.save_pretrained(directory)
    note_base(directory, base)


def has_adapters(config: Config) -> bool:
    """Whether `config` adds adapters to a model."""
    return config.tune.method not in ("full", "last")


def has_prompt(config: Config) -> bool:
    """Whether what `config` learns is a prompt, which nothing can merge into a model."""
    return config.tune.method == "prompt"


def _freeze_all_but_last(model: PreTrainedModel, layers: int) -> None:
    blocks = find_blocks(model)
    if layers > len(blocks):
        raise ModelError(
            f"tune.layers is {layers}, but the model has {len(blocks)} blocks",
            f"set tune.layers to {len(blocks)} or less",
        )
    whole: Any = model
    body = whole.base_model
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    head, table = whole.get_output_embeddings(), whole.get_input_embeddings()
    # One that is tied stays as the embedding is.
    own_head = head is not None and head.weight is not table.weight
    learning = [
        *blocks[len(blocks) - layers :],
        *([body.pooler] if getattr(body, "pooler", None) is not None else []),
        *([head] if own_head else []),
    ]
    for module in learning:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


def _adapt(model: PreTrainedModel, settings: Any, config: Config) -> Any:
    """peft's wrapping of `model`, which is adapted in place."""
    from peft import get_peft_model

    try:
        with _dice(config):
            return get_peft_model(model, settings)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"peft cannot add {config.tune.method} to a {type(model).__name__}: {error}",
            "choose another tune.method",
        ) from error


@contextmanager
def _dice(config: Config) -> Iterator[None]:
    """Inside, random numbers are those that `train.seed` gives to what is new of a model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        yield


@torch.no_grad()
def _refuse_last_place(wrapped: nn.Module) -> None:
    """Raise ModelError where `wrapped` (see `_adapt`) reads the last place of a row: behind a prompt, that of padding.

    What it reads can be found out of a model in memory alone.
    """
    if next(wrapped.parameters()).is_meta:
        return
    ids, training = torch.arange(4)[None] + 4, wrapped.training
    wrapped.eval()
    alone = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], dim=1)
    padded = wrapped(input_ids=torch.cat([ids, torch.zeros_like(ids)], dim=1), attention_mask=mask).logits
    wrapped.train(training)
    if not torch.allclose(alone, padded, rtol=1e-3, atol=1e-4):
        raise ModelError(
            "a learned prompt hides from this model where a text ends, and it reads what stands there",
            "choose an encoder, or tune.method: lora",
        )


def _settings(model: PreTrainedModel, config: Config) -> Any:
    from peft import LoraConfig, PromptTuningConfig

    own, task, whole = config.tune, peft_task(config.task.kind, model.config), _drawn_here(model, config)
    if own.method == "ia3":
        return ia3_settings(model.config.model_type, task_type=task, modules_to_save=whole)
    if own.method == "prompt":
        table: Any = model.get_input_embeddings()
        return PromptTuningConfig(
            task_type=task,
            modules_to_save=whole,
            num_virtual_tokens=own.tokens,
            # What stands there is an embedding, which peft takes to be as wide as the blocks.
            token_dim=table.weight.shape[1],
            # DistilBERT calls it by another name; a prompt has no use for it.
            num_attention_heads=getattr(model.config, "num_attention_heads", None),
            prompt_tuning_init="SAMPLE_VOCAB",
            num_transformer_submodules=1,
        )
    alpha = None if own.alpha == "auto" else own.alpha
    if own.method == "adalora":
        assert isinstance(config.train.steps, int), "resolved before a worker starts"
        return adalora_settings(
            own.rank, alpha, own.dropout, config.train.steps, task_type=task, modules_to_save=whole
        )
    return LoraConfig(
        task_type=task,
        modules_to_save=whole,
        r=own.rank,
        lora_alpha=2 * own.rank if alpha is None else alpha,
        lora_dropout=own.dropout,
        target_modules="all-linear",
    )


def _drawn_here(model: PreTrainedModel, config: Config) -> list[str] | None:
    """The modules of a head for labels, but for a pooler that the model's directory has. Whoever opens the adapters
    would draw them anew, where peft knows of the last alone; so they learn, and are saved, as a whole."""
    if not config.task.learns_head:
        return None
    assert config.model.path is not None, "nothing else is adapted"
    body: Any = model.base_model
    pooler = getattr(body, "pooler", None)
    known = pooler is not None and has_pooler(model_directory(Path(config.model.path).expanduser()))
    return [name for name in head_modules(model) if not (known and model.get_submodule(name) is pooler)]
