"""Models with quantized modules: made in place, saved as safetensors, and made again from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tutti.core import ModelError
from tutti.models.quantized.codes import Codes
from tutti.models.quantized.modules import QuantizedEmbedding, QuantizedLinear

#: In the file's metadata: which modules hold codes.
_FORMAT = "tutti-quantized-1"


def save_quantized(model: nn.Module, path: Path) -> None:
    """Write all that `model` holds; what is shared, as tied tables are, once."""
    tensors: dict[str, Tensor] = {}
    metadata = {"format": _FORMAT}
    held: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            kind = module.arithmetic if isinstance(module, QuantizedLinear) else "table"
            key = id(module.codes.code)
            metadata[name] = f"{kind} {held.setdefault(key, name)}"
            if held[key] == name:
                tensors |= {f"{name}.codes.{part}": tensor for part, tensor in module.codes.stored().items()}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            tensors[name] = tensor
            seen.add(tensor.data_ptr())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def load_quantized(model: nn.Module, path: Path) -> None:
    """Give `model`, an ordinary one, the modules and weights that `save_quantized` wrote.

    Raises:
        ModelError: the file is damaged, or of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ModelError(f"{path} holds no quantized model", "give a directory that compress wrote")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except ModelError:
        raise
    except Exception as error:  # safetensors raises its own kind
        raise ModelError(f"{path} is damaged: {error}", "make it again with compress") from error
    _put_modules(model, {n: kind for n, kind in metadata.items() if n != "format"}, tensors, path)
    rest = {name: tensor for name, tensor in tensors.items() if ".codes." not in name}
    try:
        missing, unexpected = model.load_state_dict(rest, strict=False)
    except RuntimeError as error:  # another shape
        raise ModelError(
            f"{path} does not fit the config.json beside it: {str(error).splitlines()[-1].strip()}",
            "make it again with compress",
        ) from error
    tied = {name for names in _tied(model) for name in names}
    lost = [name for name in missing if name not in tied]
    if lost or unexpected:
        raise ModelError(
            f"{path} does not fit the config.json beside it: {(lost or unexpected)[0]}",
            "make it again with compress",
        )


def _put_modules(
    model: nn.Module, kinds: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path
) -> None:
    codes: dict[str, Codes] = {}
    for name, said in kinds.items():
        kind, _, holder = said.partition(" ")
        try:
            if holder not in codes:
                prefix = f"{holder}.codes."
                codes[holder] = Codes.restored(
                    {
                        key.removeprefix(prefix): value
                        for key, value in tensors.items()
                        if key.startswith(prefix)
                    }
                )
            module = _module(kind, codes[holder], name, tensors)
            model.set_submodule(name, module)
        except (KeyError, AttributeError) as error:
            raise ModelError(
                f"{path} does not fit the config.json beside it: {name}", "make it again with compress"
            ) from error


def _module(kind: str, codes: Codes, name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    if kind == "table":
        return QuantizedEmbedding(codes)
    arithmetic: Any = kind
    return QuantizedLinear(codes, tensors.get(f"{name}.bias"), arithmetic, tensors.get(f"{name}.before"))


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of tensors that are one, where there are several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [some for some in names.values() if len(some) > 1]
