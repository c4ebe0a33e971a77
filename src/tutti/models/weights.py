"""Weights from a directory: safetensors only, every parameter found, in fp32, for the tokenizer at hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tutti.core import ModelError
from tutti.models.architecture import one_line, without_chatter


def load_weights(
    directory: Path, architecture: Any, factory: Any = AutoModelForCausalLM, seed: int | None = None
) -> PreTrainedModel:
    """The model in `directory` as fp32, made by `factory`; with a `seed`, its head may be new, and is drawn from that.

    Raises:
        ModelError: no weights, weights only as pickle (which can run code), torn, or of another model.
    """
    require_weights(directory)
    try:
        # Missing parameters are drawn at random before they are noticed: that must not move the caller's dice.
        with without_chatter(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            model, report = factory.from_pretrained(
                directory,
                config=architecture,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=seed is not None,  # those of the body are refused below
            )
    except Exception as error:
        raise _unreadable(directory, error) from error
    # Models without a head of their own, and some that write, keep their parameters under no name of a body.
    body = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    missing = [key for key in report.get("missing_keys", ()) if seed is None or _of_body(key, body)]
    mismatched = [key for key in report.get("mismatched_keys", ()) if seed is None or _of_body(key, body)]
    wrong = [str(key) for key in (*missing, *mismatched)]
    if wrong:
        raise ModelError(
            f"the weights in {directory} do not fit its config.json: {len(wrong)} parameters are missing or of "
            f"another shape, e.g. {sorted(wrong)[0]}",
            "fetch config.json and weights from the same place",
        )
    loaded: PreTrainedModel = model
    return loaded


def _of_body(key: Any, body: str) -> bool:
    """Whether every model of its kind has this parameter. (A pooler belongs to heads; not all bodies have it.)"""
    name = key if isinstance(key, str) else str(key[0])
    return name.startswith(body) and ".pooler." not in f".{name}"


def has_pooler(directory: Path) -> bool:
    """Whether the weights in `directory` are those of a body with a pooler, which a masked language model has not."""
    return any(".pooler." in f".{key}" for file in directory.glob("*.safetensors") for key in _keys(file))


def stream_weights(
    directory: Path, architecture: Any, model: nn.Module, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Tensor]]:
    """Name and content of the `wanted` parameters of `model` (its layout: names and shapes), read one by one.

    Files whose names transformers would translate first (older ones, some mixtures of experts) are loaded as a
    whole, as transformers does.

    Raises:
        ModelError: as `load_weights`.
    """
    plain, files = _directly(directory, model)
    if files is not None:
        for name in filter(wanted, plain):
            with safe_open(files[name], "pt") as opened:
                yield name, opened.get_tensor(name).float()
    else:
        whole = load_weights(directory, architecture)
        yield from ((name, whole.get_parameter_or_buffer(name).detach()) for name in filter(wanted, plain))


def check_weights(directory: Path, architecture: Any, model: nn.Module) -> None:
    """Raise ModelError unless the weights in `directory` are those of `model` (its layout), as `load_weights` does."""
    if _directly(directory, model)[1] is None:
        load_weights(directory, architecture)


def _directly(directory: Path, model: nn.Module) -> tuple[list[str], dict[str, Path] | None]:
    """Names of what is saved of `model`, tied parameters once, and the file of each; None: names or shapes differ."""
    require_weights(directory)
    try:
        files = {key: file for file in sorted(directory.glob("*.safetensors")) for key in _keys(file)}
    except Exception as error:
        raise _unreadable(directory, error) from error
    saved: dict[str, Tensor] = dict(model.named_parameters())
    saved |= {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    same = saved.keys() <= files.keys() and all(_shape(files[n], n) == saved[n].shape for n in saved)
    return list(saved), files if same else None


def _keys(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _shape(file: Path, name: str) -> torch.Size:
    with safe_open(file, "pt") as opened:
        return torch.Size(opened.get_slice(name).get_shape())


def _unreadable(directory: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the weights in {directory} cannot be loaded: {one_line(error)}",
        "fetch the files again; a download that broke off is the usual reason",
    )


def require_weights(directory: Path) -> None:
    """Raise ModelError unless `directory` has weights as safetensors."""
    if not any(directory.glob("*.safetensors")):
        pickles = sorted(path.name for path in directory.glob("*.bin")) + sorted(
            path.name for path in directory.glob("*.pt*")
        )
        if pickles:
            raise ModelError(
                f"{directory} has its weights only as pickle ({pickles[0]}), which can run code when it is opened",
                "convert them to safetensors, or set model.from_scratch: true to take only the architecture",
            )
        raise ModelError(
            f"{directory} has no weights (no *.safetensors)",
            "set model.from_scratch: true to take only the architecture, or fetch the weights",
        )
    how: Any = None
    with suppress(OSError, ValueError, AttributeError):  # told where the configuration is read
        how = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if isinstance(how, dict):
        raise ModelError(
            f"the weights in {directory} are codes ({how.get('quant_method', 'quantized')}), which cannot learn",
            "begin with the model that they were made from, or write them as numbers (transformers: dequantize)",
        )


def check_vocabulary(directory: Path, entries: int, vocabulary: int) -> None:
    """Weights mean nothing for another tokenizer: refuse when the numbers of entries say so.

    The model may have more `entries` than the tokenizer's `vocabulary`: tables are often padded.

    Raises:
        ModelError: the data's tokenizer is not the one the model was trained with.
    """
    own = _own_vocabulary(directory)
    if own == vocabulary > entries and _only_marks_from(directory, entries):
        return  # of other inputs, such as Gemma 3's images, which no text holds
    padded = vocabulary <= entries <= vocabulary + max(128, vocabulary // 100)
    if own == vocabulary <= entries or (own is None and padded):
        return
    theirs = f"{own} entries" if own is not None else f"{entries} entries in its embedding"
    raise ModelError(
        f"the model in {directory} was trained with another tokenizer: {theirs}, the data's has {vocabulary}",
        f"set data.tokenizer: {directory} to use the model's own"
        + ("" if own is not None else " (put its tokenizer files there)")
        + ", or model.from_scratch: true to take only the architecture",
    )


def _only_marks_from(directory: Path, entries: int) -> bool:
    """Whether all tokens of the tokenizer in `directory` from number `entries` on are special ones."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    beyond = [number for number in tokenizer.get_vocab(with_added_tokens=True).values() if number >= entries]
    return all(number in added and added[number].special for number in beyond)


def _own_vocabulary(directory: Path) -> int | None:
    """Entries of the tokenizer that lies beside the weights, if one does."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        return int(Tokenizer.from_file(str(file)).get_vocab_size(with_added_tokens=True))
    except Exception:  # a broken tokenizer is for the data room to complain about
        return None
