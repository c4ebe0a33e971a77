"""A model before it costs memory: its architecture, and its weights one unit after another.

A model that is to be split is laid out on torch's meta device, cut there, and only then filled. Weights are a
pure function of (seed, name of the unit): whoever needs a part draws that part, and no process ever holds
more than its own share and one unit. A unit is a block, or a part that lies outside the blocks.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tutti.core import ModelError
from tutti.models.architecture import one_line, without_chatter
from tutti.models.blocks import find_blocks
from tutti.models.initial import initialise, number_of
from tutti.models.weights import check_weights, load_weights, stream_weights

#: Words of a twin.
TWIN_VOCABULARY = 64

#: Says which units are wanted, by the names of their tensors.
Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Blueprint:
    """An `architecture` (Hugging Face configuration), and where its weights come from.

    `directory`: weights of a Hugging Face directory; None: drawn from `seed`. `preset`: with the first weights
    of Tutti's own sizes. `choices`: what was chosen on the way, in sentences. `stops`: tokens beside `end_token` that
    end what it writes, such as that which ends a turn of a talk.
    """

    architecture: Any
    seed: int
    end_token: int
    directory: Path | None = None
    preset: bool = False
    choices: list[str] = field(default_factory=list)
    stops: tuple[int, ...] = ()

    def lay_out(self) -> PreTrainedModel:
        """The model on the meta device: names and shapes, no memory.

        Raises:
            ModelError: it cannot be built.
        """
        return self._ready(self._empty())

    def build(self) -> PreTrainedModel:
        """The whole model in fp32 on the CPU.

        Raises:
            ModelError: it cannot be built, or the weights do not fit.
        """
        if self.directory is not None:
            return self._ready(load_weights(self.directory, self.architecture))
        model = self.lay_out()
        model.to_empty(device="cpu")
        model.tie_weights()
        fill(model, self.weights())
        return model

    def check_weights(self) -> None:
        """Raise ModelError if the weights of a directory do not fit; what is drawn always does."""
        if self.directory is not None:
            check_weights(self.directory, self.architecture, self._empty())

    def twin(self) -> PreTrainedModel:
        """A small model of the same kind, in memory: a layer of every sort that there is, and 64 words.

        What holds for the twin's way of computing holds for the model's: how documents are packed, how a block
        is split.
        """
        architecture = copy.deepcopy(self.architecture)
        text = architecture.get_text_config(decoder=True)
        keep_one_layer_of_each_sort(text)
        for part in {id(part): part for part in (architecture, text)}.values():
            part.vocab_size = min(TWIN_VOCABULARY, part.vocab_size)
            part.eos_token_id = part.bos_token_id = part.pad_token_id = 0
        return dataclasses.replace(
            self, architecture=architecture, directory=None, end_token=0, stops=()
        ).build()

    def weights(self, wanted: Wanted = lambda _: True) -> Iterator[tuple[str, Tensor]]:
        """Name and content [whole tensor, CPU] of every parameter and buffer in the units of which one is `wanted`.

        Tied parameters come once, under the name that the model registers first.
        """
        if self.directory is None:
            yield from self._drawn(wanted)
            return
        model = self._empty()
        yield from stream_weights(self.directory, self.architecture, model, wanted)
        saved = model.state_dict().keys()
        computed = self._drawn(
            lambda name: wanted(name) and name not in saved
        )  # tables of rotations and the like
        yield from ((name, tensor) for name, tensor in computed if name not in saved)

    def _drawn(self, wanted: Wanted) -> Iterator[tuple[str, Tensor]]:
        model = self._empty()
        canonical = {name for name, _ in model.named_parameters()}
        for name, unit in units(model):
            own = [key for key, _ in _tensors(unit, name)]
            if not any(wanted(key) for key in own):
                continue
            _draw(model, name, unit, self.seed)
            if self.preset:
                initialise(unit, self.seed, name)
            for key, tensor in _tensors(unit, name):
                if key in canonical or not isinstance(tensor, nn.Parameter):
                    yield key, self._constructed[key] if _untouched(tensor) else tensor.detach()
            unit.to_empty(device="meta")

    @functools.cached_property
    def _constructed(self) -> dict[str, Tensor]:
        """What the whole model holds when it is constructed in memory: for the few tensors that some
        architectures set in their constructors alone."""
        return dict(_tensors(self._make("cpu")))

    def _empty(self) -> PreTrainedModel:
        return self._make("meta")

    def _make(self, device: str) -> PreTrainedModel:
        factory: Any = AutoModelForCausalLM
        try:
            with torch.random.fork_rng(devices=[]), without_chatter(), torch.device(device):
                torch.manual_seed(self.seed)
                model = factory.from_config(self.architecture, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:
            raise ModelError(
                f"the {self.architecture.model_type} model cannot be built: {one_line(error)}",
                "check that the numbers of its configuration fit together",
            ) from error
        laid_out: PreTrainedModel = model
        return laid_out

    def _ready(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` with its end tokens, for generation here and wherever the export is opened; in training mode."""
        whole: Any = model
        end, stops = self.end_token, [*self.stops]
        if self.directory is None:
            end = self.architecture.get_text_config(decoder=True).eos_token_id
        elif whole.generation_config is not None:
            known = whole.generation_config.eos_token_id
            if isinstance(known, list) and end in known:  # of the same tokenizer: its other ends stay ends
                stops += known
        for settings in (whole.config.get_text_config(decoder=True), whole.config, whole.generation_config):
            if settings is None:
                continue
            settings.eos_token_id = end
            if self.directory is None or settings.pad_token_id is None:
                settings.pad_token_id = end
            if self.directory is None:
                settings.bos_token_id = end
        others = sorted({stop for stop in stops if stop != end})
        if others and whole.generation_config is not None:
            whole.generation_config.eos_token_id = [end, *others]
        return model


def keep_one_layer_of_each_sort(text: Any) -> None:
    """Shorten every list of `text` that says something of each layer, after the last sort has appeared."""
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 2:
        return
    lists = {k: v for k, v in vars(text).items() if isinstance(v, list | tuple) and len(v) == layers}
    sorts = [tuple(map(str, sort)) for sort in zip(*lists.values(), strict=True)] or [()] * layers
    kept = max(sorts.index(sort) for sort in set(sorts)) + 1
    if kept == layers:
        return
    for key, value in lists.items():
        setattr(text, key, value[:kept])
    text.num_hidden_layers = kept


def units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every unit: the blocks, and the largest parts that hold no block. "" is what the model
    and its ancestors of blocks hold themselves, which is seldom anything."""
    blocks = {id(block) for block in find_blocks(model)}

    def inside(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        holds_blocks = any(id(part) in blocks for part in module.modules())
        if id(module) in blocks or not holds_blocks:
            yield name, module
            return
        if any(True for _ in module.parameters(recurse=False)) or any(
            True for _ in module.buffers(recurse=False)
        ):
            yield name, _Own(module)
        for child_name, child in module.named_children():
            yield from inside(child, f"{name}.{child_name}" if name else child_name)

    yield from inside(model, "")


class _Own(nn.Module):
    """What a module holds itself, without its children."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers = module._parameters, module._buffers
        self.__dict__["of"] = module


@torch.no_grad()
def fill(model: nn.Module, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copy `weights` into the parameters and buffers of `model` (all of it in memory) that have their names."""
    own = dict(_tensors(model))
    for name, content in weights:
        if name in own:
            own[name].copy_(content)


def _tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(prefix, remove_duplicate=False)
    yield from module.named_buffers(prefix, remove_duplicate=False)


@torch.no_grad()
def _draw(model: PreTrainedModel, name: str, unit: nn.Module, seed: int) -> None:
    """First weights of `unit`, as its architecture draws them, from dice of its own."""
    owner: Any = model
    for depth in range(1, name.count(".") + 2 if name else 0):
        part = model.get_submodule(".".join(name.split(".")[:depth]))
        owner = part if isinstance(part, PreTrainedModel) else owner
    unit.to_empty(device="cpu")
    for _, tensor in _tensors(unit):
        tensor.fill_(_blank(tensor.dtype))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number_of(seed, name))
        for module in reversed(list(unit.modules())):  # children first: a parent may correct what they drew
            owner._init_weights(module.__dict__.get("of", module))


def _blank(dtype: torch.dtype) -> float | int | bool:
    """A value that no initialisation gives."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return False if dtype == torch.bool else torch.iinfo(dtype).min


def _untouched(tensor: Tensor) -> bool:
    """Whether nothing has been written to `tensor` since `_draw` blanked it (of a mask one cannot say)."""
    blank = _blank(tensor.dtype)
    return bool((tensor.isnan() if blank != blank else tensor == blank).any())
