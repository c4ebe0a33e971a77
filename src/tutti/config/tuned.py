"""What `tune` and `remember` go with: how a trained model learns, and everything else that a run may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutti.config.task import FROM_TEXT, RememberConfig

if TYPE_CHECKING:
    from tutti.config.schema import Config

#: Kinds of task whose models are asked, and may be given a learned prompt: they say one thing of a whole text.
_PROMPTED = ("classify", "relate")


def check_tune(config: Config) -> None:
    """Raise ValueError where what is to learn of a model does not go with the rest."""
    method, kind, adapters = config.tune.method, config.task.kind, config.tune.method not in ("full", "last")
    if method == "full" and not config.tune.quantize:
        return
    if config.tune.quantize and not config.task.asks:
        raise ValueError("tune.quantize is for models that are asked (see task.kind), so far")
    if (adapters or not config.task.asks) and (config.model.path is None or config.model.from_scratch):
        raise ValueError(
            f"tune.method: {method} keeps what a model knows, and a new one knows nothing; give a trained one as "
            "model.path"
        )
    if method in ("lora", "adalora") and config.train.optimizer == "adafactor":
        raise ValueError(
            f"tune.method: {method} begins at nothing, and steps of train.optimizer: adafactor are relative to what is "
            "there; what is learned is small, so that adamw takes next to no memory"
        )
    if not config.task.asks:
        _check_writer(config)
    if method == "prompt" and kind in FROM_TEXT:
        raise ValueError(
            "tune.method: prompt would have to stand before every text, and a language model learns from windows in "
            "which several stand side by side; use lora"
        )
    if method == "prompt" and config.task.asks and kind not in _PROMPTED:
        raise ValueError(
            f"tune.method: prompt is for task.kind {' and '.join(_PROMPTED)}, and for encoder-decoders that write; "
            f"{kind} has something to say at each place, and those of a prompt are no places of the text"
        )
    if method == "adalora":
        _check_adalora(config)


def _check_writer(config: Config) -> None:
    layout = config.layout
    if layout.tensor * layout.pipeline * layout.context > 1:
        raise ValueError(
            f"tune.method: {config.tune.method} goes with layout.shard alone: adapters and frozen parts are put into "
            "the whole model, which layout.tensor, layout.pipeline and layout.context cut before it exists"
        )
    if config.memory.budget is not None:
        raise ValueError(
            "memory.budget reckons with models that learn whole; with tune set memory.recompute, memory.offload "
            "or train.micro_batch instead"
        )
    if config.groups != 1 and config.cooperate.exchange == "weights":
        raise ValueError("cooperate.exchange: weights sends whole models; with tune use predictions")


def _check_adalora(config: Config) -> None:
    if config.sync.policy != "allreduce":
        raise ValueError(
            "tune.method: adalora takes rank away by the gradient of the whole batch, which all replicas have "
            f"after every step only with sync.policy: allreduce; with {config.sync.policy} each would take away another"
        )
    if config.layout.ranks > 1:
        raise ValueError(
            "tune.method: adalora compares all ranks of a model with each other, for which every worker needs the "
            "whole; set layout: 1, or tune.method: lora"
        )
    if config.train.optimizer != "adamw":
        raise ValueError(
            f"tune.method: adalora learns single numbers, which train.optimizer: {config.train.optimizer} cannot step"
        )


def check_remember(config: Config) -> None:
    """Raise ValueError where what is to be remembered does not go with the rest."""
    remember = config.remember
    if remember.source is None:
        if remember != RememberConfig():
            raise ValueError("remember needs examples of what the model knew: remember.source")
        return
    if config.task.kind == "recommend":
        raise ValueError("remember is not for task.kind recommend, so far")
    if config.data.weights is not None:
        raise ValueError(
            "data.weights and remember.replay both say how much of a text is read; list what is to be remembered in "
            "data.source, with a weight"
        )
    if not remember.replay and not remember.ewc:
        raise ValueError("remember.source is of no use with both remember.replay and remember.ewc at 0")
    if remember.replay >= 0.9:
        raise ValueError("remember.replay leaves less than a tenth of the training examples to what is new")
    if remember.ewc:
        _check_held(config)


def _check_held(config: Config) -> None:
    if not config.task.asks:
        raise ValueError("remember.ewc is for models that are asked (see task.kind), so far")
    if config.tune.method not in ("full", "last"):
        raise ValueError(
            f"remember.ewc holds weights that learn themselves, not those of {config.tune.method}"
        )
    if config.model.path is None or config.model.from_scratch:
        raise ValueError("remember.ewc holds what a model knows: name one in model.path")
    if config.sync.policy == "server":
        raise ValueError("remember.ewc is not for sync.policy server, where the optimizer is elsewhere")
