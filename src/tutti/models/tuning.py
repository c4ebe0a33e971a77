"""How much of a trained model is changed: all of it, its last blocks, or small adapters beside its matrices (peft).

An adapted model is the model itself, with some of its linear layers replaced by peft's; so whatever handles a model
(layouts, sums between replicas, checkpoints) handles it. `merged` makes an ordinary model of it again, and
`save_adapters` writes the adapters alone, as `peft.PeftModel.from_pretrained` takes them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tutti.config.task import TuneConfig
from tutti.core import ModelError
from tutti.models.blocks import find_blocks

#: By kind of task, as peft calls them.
_KINDS = {
    "classify": "SEQ_CLS", "relate": "SEQ_CLS", "tag": "TOKEN_CLS", "answer": "QUESTION_ANS",
    "recommend": "CAUSAL_LM", "embed": "FEATURE_EXTRACTION",
}  # fmt: skip


def tune(model: PreTrainedModel, config: TuneConfig, kind: str, seed: int) -> list[str]:
    """Let only that part of `model` learn that `config` says, in place; returns what the user should know.

    Adapters are drawn from `seed`, so that every worker draws the same.

    Raises:
        ModelError: this architecture cannot be tuned so.
    """
    if config.method == "full":
        return []
    if config.method == "last":
        _freeze_all_but_last(model, config.layers)
    else:
        _adapt(model, config, kind, seed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    return [
        f"tune.method = {config.method}: {trained:,} of {whole:,} parameters learn ({100 * trained / whole:.2g} %)"
    ]


def merged(model: nn.Module) -> nn.Module:
    """`model` without adapters, what they learned added to its own weights; the same object where it has none."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if not any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            plain.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return plain


def save_adapters(
    model: nn.Module, fresh: PreTrainedModel, config: TuneConfig, kind: str, directory: Path
) -> None:
    """Write the adapters of `model` alone to `directory`. `fresh`: a model like it that has none yet."""
    from peft import get_peft_model

    wrapped = get_peft_model(fresh, _settings(config, kind))
    wrapped.base_model.model.load_state_dict(model.state_dict())
    wrapped.save_pretrained(directory)


def has_adapters(config: TuneConfig) -> bool:
    """Whether `config` adds adapters to a model."""
    return config.method not in ("full", "last")


def _freeze_all_but_last(model: PreTrainedModel, layers: int) -> None:
    blocks = find_blocks(model)
    if layers > len(blocks):
        raise ModelError(
            f"tune.layers is {layers}, but the model has {len(blocks)} blocks",
            f"set tune.layers to {len(blocks)} or less",
        )
    body: Any = model.base_model
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    learning = [
        *blocks[len(blocks) - layers :],
        *([body.pooler] if getattr(body, "pooler", None) is not None else []),
    ]
    for module in learning:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


def _adapt(model: PreTrainedModel, config: TuneConfig, kind: str, seed: int) -> None:
    from peft import get_peft_model

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            get_peft_model(model, _settings(config, kind))
    except ValueError as error:
        raise ModelError(
            f"peft cannot add {config.method} to a {type(model).__name__}: {error}",
            "choose another tune.method",
        ) from error


def _settings(config: TuneConfig, kind: str) -> Any:
    from peft import IA3Config, LoraConfig

    task = _KINDS[kind]
    if config.method == "ia3":
        return IA3Config(task_type=task)
    return LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha == "auto" else config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
    )
