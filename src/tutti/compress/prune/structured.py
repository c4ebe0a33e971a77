"""Whole layers and feed-forward channels taken out: what is left is an ordinary, smaller Hugging Face model.

Layers: each time the one goes that changes what passes through it least, 1 − cos(x, layer(x)) averaged over tokens
(Men et al. 2024, arXiv 2403.03853). Channels: those go whose part in the layer's output is smallest, ‖x_c‖ · ‖W_c‖
with x what goes into the last matrix W of the feed-forward layer, the same number in every layer.

Shapes: D width, I feed-forward channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutti.compress.quantize.inputs import observe_inputs
from tutti.core import ModelError
from tutti.models import find_blocks

Run = Callable[[], Iterable[object]]
#: Channels come in multiples of these: kernels like them.
_MULTIPLE = 16
#: What configurations say of each layer in turn, and in which they list the numbers of some layers.
_OF_EACH = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "attention_layers", "no_rope_layers"),
    *("layer_rope_theta", "indexer_types"),
)
_OF_SOME = ("mlp_only_layers", "moe_layers")


class Fewer(NamedTuple):
    """`keep` of `whole` parts stay in a model by `config`: of each of its blocks those linear layers of the whole model
    that have fewer inputs there (`last`), and those that have fewer outputs (`first`)."""

    config: Any
    keep: int
    whole: int
    thinned: list[tuple[list[nn.Linear], list[nn.Linear]]]


def require_layers(model: PreTrainedModel, keep: int) -> None:
    """What can be known before anything is computed of whether `keep` of the blocks of `model` can stay.

    Raises:
        ModelError: there are not more than so many, or this architecture does not say how many it has.
    """
    count = len(find_blocks(model))
    hint = f"keep 1 to {count - 1}" if count > 1 else "leave layers out of the recipe"
    if not 0 < keep <= count:
        raise ModelError(f"the model has {count} layers, of which {keep} are to stay", hint)
    if keep == count:
        raise ModelError(f"the model has {count} layers, which are all to stay: none would go", hint)
    sketch = like(model, _with_layers(model, list(range(keep))), "meta")
    if _prefix_of_blocks(sketch) != _prefix_of_blocks(model) or len(find_blocks(sketch)) != keep:
        raise ModelError(
            f"a {type(model).__name__} does not say in its configuration how many layers it has",
            "leave layers out of the recipe",
        )


@torch.no_grad()
def drop_layers(model: PreTrainedModel, keep: int, run: Run) -> PreTrainedModel:
    """A model with `keep` of the blocks of `model`, which is left as it is. `run`: has `model` compute, batch by batch.

    Raises:
        ModelError: there are not more, or this architecture does not say how many it has, or what each is like.
    """
    require_layers(model, keep)
    left = list(range(len(find_blocks(model))))
    names = [set(block.state_dict()) for block in find_blocks(model)]

    def may_go(place: int) -> bool:  # where the first layer is of another make, no other can take its place
        return place > 0 or names[0] == names[-1]

    while len(left) > keep:
        change = _changes(model, left, run)
        left.remove(min(filter(may_go, left), key=lambda place: change[place]))
    smaller = like(model, _with_layers(model, left))
    prefix = _prefix_of_blocks(model)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            place, _, rest = name.removeprefix(prefix).partition(".")
            if int(place) not in left:
                continue
            name = f"{prefix}{left.index(int(place))}.{rest}"
        state[name] = tensor
    unlike = ModelError(
        f"the configuration of a {type(model).__name__} does not say of each layer what it is like: what is left of it "
        "would compute something else",
        "leave layers out of the recipe",
    )
    try:
        smaller.load_state_dict(state)
    except RuntimeError as error:  # a layer has taken the place of one of another make
        raise unlike from error
    if not _same(model, left, smaller, run):
        raise unlike
    return smaller


def _with_layers(model: PreTrainedModel, left: list[int]) -> Any:
    """The configuration of `model` with only the layers that are `left`."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers = len(left)
    _keep_settings(text, left, len(find_blocks(model)))
    return config


def _keep_settings(config: Any, left: list[int], count: int) -> None:
    """Of `count` layers, what `config` says of those that are `left`."""
    for name in _OF_EACH:
        settings = getattr(config, name, None)
        if isinstance(settings, list) and len(settings) == count:
            setattr(config, name, [settings[place] for place in left])
    for name in _OF_SOME:
        if isinstance(numbers := getattr(config, name, None), list):
            setattr(config, name, [left.index(place) for place in numbers if place in left])
    if hasattr(
        config, "attention_types"
    ):  # GPT-Neo's, of which its `attention_layers` are made when it is read
        config.attention_types = [[list(config.attention_layers), 1]]


def _same(model: PreTrainedModel, left: list[int], smaller: PreTrainedModel, run: Run) -> bool:
    """Whether `smaller` gives what `model` does with only the blocks that are `left`, on the first batch of `run`."""
    found: list[bool] = []

    def compare(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if not found:  # here, where whoever calls has said what is to be masked
            found.append(_alike(smaller(*given, **named)[0], output[0], named.get("attention_mask")))

    handle = model.register_forward_hook(compare, with_kwargs=True)
    try:
        with _passing_on(model, left):
            next(iter(run()), None)
    finally:
        handle.remove()
    return all(found)


def _alike(found: Tensor, expected: Tensor, mask: Tensor | None) -> bool:
    """Whether both are the same but for rounding; padding, by `mask`, may be left out of one of them."""
    if mask is not None and mask.shape == expected.shape[:2]:
        found, expected = found[mask.bool()], expected[mask.bool()]
    return torch.allclose(found, expected, rtol=0.0, atol=1e-3 * float(expected.abs().max()), equal_nan=True)


def fewer_channels(model: PreTrainedModel, share: float) -> Fewer:
    """What becomes of `model` with `share` of its feed-forward channels. Nothing is computed.

    Raises:
        ModelError: its feed-forward layers are not understood, or so many are as good as all.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    channels = getattr(text, "intermediate_size", None)
    if not isinstance(channels, int) or not find_blocks(model):
        raise ModelError(
            f"a {type(model).__name__} does not say in its configuration how wide its feed-forward layers are",
            "leave channels out of the recipe",
        )
    keep = min(channels, max(_MULTIPLE, round(share * channels / _MULTIPLE) * _MULTIPLE))
    if keep == channels:
        most = (channels - 1) // _MULTIPLE * _MULTIPLE
        raise ModelError(
            f"{share:g} of {channels} channels, in multiples of {_MULTIPLE}, are all of them: none would go",
            f"keep {most} of them or fewer: channels:{most / channels:.4g}"
            if most
            else "leave channels out of the recipe",
        )
    text.intermediate_size = keep
    found = thinned(model, config)
    for last, first in found:
        if len(last) != 1 or not first or any(m.out_features % channels for m in first):
            raise ModelError(
                f"the feed-forward layers of a {type(model).__name__} are not understood",
                "leave channels out of the recipe",
            )
    return Fewer(config, keep, channels, found)


@torch.no_grad()
def narrow_feed_forward(model: PreTrainedModel, share: float, run: Run) -> PreTrainedModel:
    """A model with `share` of the feed-forward channels of `model`, which is left as it is.

    Raises:
        ModelError: see `fewer_channels`.
    """
    config, keep, channels, found = fewer_channels(model, share)
    smaller = like(model, config)
    state = model.state_dict()
    names = {id(module): name for name, module in model.named_modules()}
    for last, first in found:
        size = observe_inputs(last, run)[id(last[0])].norm * last[0].weight.norm(dim=0)
        best = size.argsort(descending=True)[:keep].sort().values
        state[f"{names[id(last[0])]}.weight"] = last[0].weight[:, best]
        for module in first:
            # Gates that share a matrix with what they let through: its second half.
            halves = torch.cat([best, best + channels]) if module.out_features == 2 * channels else best
            for part in ("weight", "bias"):
                tensor: Tensor | None = getattr(module, part)
                if tensor is not None:
                    state[f"{names[id(module)]}.{part}"] = tensor[halves]
    smaller.load_state_dict(state)
    return smaller


def _changes(model: nn.Module, left: list[int], run: Run) -> dict[int, float]:
    """Mean 1 − cos(x, layer(x)) of the blocks that are `left`; the others pass on what they are given."""
    blocks = find_blocks(model)
    sums = dict.fromkeys(left, 0.0)
    tokens = dict.fromkeys(left, 0)
    handles = []

    def note(place: int) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            apart = 1 - F.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[place] += float(apart.sum())
            tokens[place] += apart.numel()

        return hook

    for place in left:
        handles.append(blocks[place].register_forward_hook(note(place), with_kwargs=True, prepend=True))
    try:
        with _passing_on(model, left):
            for _ in run():
                pass
    finally:
        for handle in handles:
            handle.remove()
    return {place: sums[place] / max(1, tokens[place]) for place in left}


@contextmanager
def _passing_on(model: nn.Module, left: list[int]) -> Iterator[None]:
    """Inside, the blocks of `model` that are not `left` pass on what they are given."""

    def pass_on(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        before = given[0] if given else named["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    # Before those that put padding back (`tasks.dense`): what comes in and goes out must be of one shape.
    handles = [
        block.register_forward_hook(pass_on, with_kwargs=True, prepend=True)
        for place, block in enumerate(find_blocks(model))
        if place not in left
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prefix_of_blocks(model: nn.Module) -> str:
    """What the names of the parameters of all blocks begin with, before their number."""
    first = find_blocks(model)[0]
    name = next(name for name, module in model.named_modules() if module is first)
    return f"{name.rpartition('.')[0]}."


def thinned(model: PreTrainedModel, config: Any) -> list[tuple[list[nn.Linear], list[nn.Linear]]]:
    """Of each block of `model` the linear layers that have fewer inputs, and fewer outputs, in a model by `config`."""
    sketch = like(model, config, "meta")
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for block in find_blocks(model):
        linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
        thinner = {id(m): sketch.get_submodule(names[id(m)]) for m in linear}
        last = [module for module in linear if thinner[id(module)].in_features != module.in_features]
        first = [module for module in linear if thinner[id(module)].out_features != module.out_features]
        found.append((last, first))
    return found


def like(model: PreTrainedModel, config: Any, device: str = "cpu") -> PreTrainedModel:
    """A model of the class of `model` by `config`, whose weights are about to be replaced; on `meta` it has none."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        made = type(model)(config)
    made.eval()  # type: ignore[no-untyped-call]
    return made
