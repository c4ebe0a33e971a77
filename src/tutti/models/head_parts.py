"""What of a Hugging Face model is its head: what makes an answer of its last hidden states."""

from __future__ import annotations

from torch import nn


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Of a Hugging Face `model`, what makes an answer of its last hidden states: what is not in its body, and the
    body's pooler, which few of those who train encoders train. Of another module nothing."""
    body = getattr(model, "base_model", model)
    inside = {id(parameter) for parameter in body.parameters()}
    if isinstance(pooler := getattr(body, "pooler", None), nn.Module):
        inside -= {id(parameter) for parameter in pooler.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]


def head_modules(model: nn.Module) -> list[str]:
    """The names of the largest modules of `model` that are wholly of its head (see `head_parameters`)."""
    head, found = {id(parameter) for parameter in head_parameters(model)}, list[str]()
    for name, module in model.named_modules():
        own = [id(parameter) for parameter in module.parameters()]
        if own and head.issuperset(own) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found
