"""Any model that goes on from texts, made ready to be served: a run's, one that `compress` wrote, a Hugging Face
directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutti.config.task import TaskConfig
from tutti.core.errors import ModelError, RunError
from tutti.models.quantized import QuantizedLinear, round_to_nearest, straighten
from tutti.models.tuning import merged
from tutti.package import Asker, Package, is_package, open_package, open_writer
from tutti.serve.hugging_face import open_hugging_face, task_in
from tutti.serve.service import Turn
from tutti.serve.settings import Weights
from tutti.serve.talks import learned_turn, turn_of
from tutti.train.labelled import LabelledJob
from tutti.trained import asker_of, load_causal, load_trained, require_causal, talks_of, task_of


@dataclass(frozen=True)
class Found:
    """A model with what it takes to talk to it. `context`: tokens that it can see; `turn`: see `Service`."""

    name: str
    model: nn.Module
    tokenizer: Any
    turn: Turn | None
    context: int
    end_tokens: set[int]
    vocabulary: int


@dataclass(frozen=True)
class FoundAsker:
    """A model that does not write. `in_onnx`: onnxruntime computes it, so its weights are what they are."""

    name: str
    asker: Asker
    in_onnx: bool


def load_any(place: Path) -> Found | FoundAsker:
    """The model of `place`, whatever it is for.

    Raises:
        TuttiError: there is none, or it is of no kind that is served.
    """
    if is_package(place):
        package = Package.read(place)
        task = package.task
    elif (place / "config.json").is_file():
        package, task = None, task_in(place)
    else:
        package, task = None, task_of(place)
    if not task.asks:
        _require_no_encoder_decoder(place, task)
        return load_model(place)
    name = place.resolve().name
    if package is not None:
        return FoundAsker(name, open_package(place), package.engine == "onnx")
    if (place / "config.json").is_file():
        return FoundAsker(name, open_hugging_face(place, task), False)
    job, config, _ = load_trained(place)
    assert isinstance(job, LabelledJob)
    asker = asker_of(job, config)
    plain = merged(job.objective.model)
    if plain is not job.objective.model:
        asker = replace(asker, objective=job.task.objective(plain, asker.labels))
    return FoundAsker(name, asker, False)


def _require_no_encoder_decoder(place: Path, task: TaskConfig) -> None:
    if task.kind in ("translate", "summarise"):
        raise RunError(
            f"{place} learned to {task.kind}: models that read one text and write another are not served",
            f"ask it with `tutti predict {place} …`",
        )


def load_model(place: Path) -> Found:
    """The model of `place`.

    Raises:
        TuttiError: there is none, or it does not go on from texts.
    """
    if is_package(place):
        require_causal(place, Package.read(place).task)
        writer = open_writer(place)
        model, tokenizer, talks = writer.model, writer.tokenizer, writer.encoder
    elif (place / "config.json").is_file():
        (model, tokenizer), talks = _from_hugging_face(place), None
    else:
        model, tokenizer, task = load_causal(place)
        talks = talks_of(tokenizer, task) if task.kind == "chat" else None
    config: Any = model.config.get_text_config(decoder=True)
    weight: Any = model.get_input_embeddings().weight
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = tokenizer.eos_token_id if ends is None else ends
    return Found(
        name=place.resolve().name,
        model=model,
        tokenizer=tokenizer,
        turn=turn_of(tokenizer) if talks is None else learned_turn(talks),
        context=int(getattr(config, "max_position_embeddings", None) or 1 << 20),
        end_tokens=set(ends) if isinstance(ends, list) else {ends} - {None},
        vocabulary=len(weight),
    )


def set_weights(model: nn.Module, weights: Weights) -> str:
    """Have `model` compute with `weights`, in place; says what was done."""
    if torch.cuda.is_available() and weights in ("auto", "bf16"):
        model.to(device="cuda", dtype=torch.bfloat16)
        return "weights: bf16, on the GPU"
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        return "weights: whole numbers, as they were written"
    if weights == "bf16":
        model.to(torch.bfloat16)
        return "weights: bf16"
    if weights == "as-they-are":
        return f"weights: {next(model.parameters()).dtype}".replace("torch.", "")
    straighten(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            codes = round_to_nearest(module.weight.detach().float(), 8)
            model.set_submodule(name, QuantizedLinear(codes, module.bias, "dynamic"))
    return "weights: int8, rounded as they were read (--weights as-they-are leaves them alone)"


def cached_as(model: nn.Module) -> torch.dtype | None:
    """How keys and values of `model` are kept: beside weights of 8 bits in 16, as to fetch them is what attention
    costs; None: as it computes them."""
    quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
    return torch.bfloat16 if quantized else None


def _from_hugging_face(place: Path) -> tuple[Any, Any]:
    try:
        model = AutoModelForCausalLM.from_pretrained(place, local_files_only=True, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{place} holds no model that goes on from texts: {str(error).splitlines()[0]}",
            "give a directory with config.json, model.safetensors and a tokenizer",
        ) from error
