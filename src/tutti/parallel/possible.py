"""Which layouts a model allows, said before anything starts, with the nearest ones that would do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tutti.config.layout import LayoutConfig
from tutti.core import ConfigError, ModelError
from tutti.models import find_blocks
from tutti.parallel.tensor import candidates
from tutti.tasks import Manner
from tutti.tasks.packing import ATTENTION

_DIMENSIONS = ("pipeline", "shard", "context", "tensor")


@dataclass(frozen=True)
class Limits:
    """What of a model decides how it can be split. `why_not_…`: a reason that no number of ranks changes ("": none)."""

    kind: str
    heads: int
    key_value_heads: int
    hidden_units: int
    blocks: int
    #: Samples that a replica computes in a step.
    samples: int
    why_not_tensor: str = ""
    why_not_context: str = ""
    why_not_pipeline: str = ""


def limits_of(model: Any, manner: Manner, samples: int) -> Limits:
    """Of a Hugging Face model, in memory or on the meta device."""
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", 0) or 0
    kind = model.config.model_type
    tensor = "" if heads else f"{kind} has no attention heads to share out"
    try:
        next(iter(candidates(model)))
    except ModelError as error:
        tensor = str(error)
    own_attention = manner.attention == ATTENTION and manner.takes_positions and not manner.unpack
    return Limits(
        kind=kind,
        heads=heads,
        key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
        hidden_units=getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 0,
        blocks=len(find_blocks(model)),
        samples=samples,
        why_not_tensor=tensor,
        why_not_context=""
        if own_attention and heads
        else f"{kind} does not take Tutti's attention or positions",
        why_not_pipeline=f"{kind} keeps documents apart as rows of their own, so activations have no fixed size"
        if manner.unpack
        else "",
    )


def limits_with_head(model: Any, samples: int) -> Limits:
    """Of a Hugging Face model, in memory or on the meta device, that is asked about rows."""
    text = model.config.get_text_config()
    kind, heads = model.config.model_type, getattr(text, "num_attention_heads", 0) or 0
    tensor = "" if heads else f"{kind} has no attention heads to share out"
    try:
        next(iter(candidates(model)))
    except ModelError as error:
        tensor = str(error)
    return Limits(
        kind=kind,
        heads=heads,
        key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
        hidden_units=getattr(text, "intermediate_size", None) or 0,
        blocks=len(find_blocks(model)),
        samples=samples,
        why_not_tensor=tensor,
        why_not_context="examples with labels are rows of unlike length, most of them short, which are not cut",
        why_not_pipeline="examples with labels are rows of unlike length, computed without padding, but from stage to "
        "stage activations have one size",
    )


def sharded_only(kind: str, why: str, samples: int) -> Limits:
    """Of a model that only `shard` can split, and `why`."""
    return Limits(kind, 0, 0, 0, 0, samples, why, why, why)


def anything_else(samples: int) -> Limits:
    """A module of the user's, of which nothing is known: it can be sharded."""
    return sharded_only("your module", "the model is your own module, which only `shard` can split", samples)


def check_layout(layout: LayoutConfig, limits: Limits) -> None:
    """Refuse what cannot be.

    Raises:
        ConfigError: with every reason, and the nearest layouts that are possible.
    """
    reasons = list(_against(layout, limits))
    if not reasons:
        return
    near = [_written(other) for other in nearest(layout, limits)]
    raise ConfigError(
        f"layout {_written(layout)} is impossible: {'; '.join(reasons)}",
        f"possible with as many ranks: {', '.join(near)}" if near else "use fewer ranks, or layout: 1",
    )


def _against(layout: LayoutConfig, limits: Limits) -> Iterator[str]:
    """Everything that speaks against `layout`."""
    tensor, context, pipeline = layout.tensor, layout.context, layout.pipeline
    for name, size, never in (
        ("tensor", tensor, limits.why_not_tensor),
        ("context", context, limits.why_not_context),
        ("pipeline", pipeline, limits.why_not_pipeline),
    ):
        if size > 1 and never:
            yield f"{name}: {never}"
    ways = tensor * context
    if ways > 1 and limits.heads:
        named = "tensor × context" if tensor > 1 and context > 1 else "tensor" if tensor > 1 else "context"
        for what, count in (
            ("attention heads", limits.heads),
            ("key-value heads", limits.key_value_heads),
        ):
            if count % ways:
                yield f"{named} = {ways} does not divide the {count} {what} of {limits.kind}"
                break
    if tensor > 1 and limits.hidden_units % tensor:
        yield f"tensor = {tensor} does not divide the {limits.hidden_units} hidden units of {limits.kind}"
    stages = pipeline * (layout.stages_per_rank if layout.schedule == "interleaved" else 1)
    if pipeline > 1 and not limits.why_not_pipeline and stages > limits.blocks:
        made_of = f"{stages} stages" if stages > pipeline else f"pipeline = {pipeline}"
        yield f"{made_of} are more than the {limits.blocks} layers of {limits.kind}"
    if layout.schedule != "1f1b" and pipeline == 1:
        yield f"schedule = {layout.schedule} needs a pipeline"
    if layout.stages_per_rank != LayoutConfig().stages_per_rank and layout.schedule != "interleaved":
        yield f"stages_per_rank = {layout.stages_per_rank} needs schedule = interleaved"
    if layout.zero != LayoutConfig().zero and layout.data == 1:
        yield f"zero = {layout.zero} needs shard or context: nothing is shared out"
    if layout.shard > limits.samples:
        yield f"shard = {layout.shard} is more than the {limits.samples} samples that a replica computes in a step"


def nearest(layout: LayoutConfig, limits: Limits, count: int = 3) -> list[LayoutConfig]:
    """Possible layouts with as many ranks, those that change least first."""
    wanted = [getattr(layout, name) for name in _DIMENSIONS]
    divisors = [size for size in range(1, layout.ranks + 1) if layout.ranks % size == 0]
    found = []
    for sizes in itertools.product(divisors, repeat=len(_DIMENSIONS)):
        if math.prod(sizes) != layout.ranks:
            continue
        other = _without_effectless(layout.model_copy(update=dict(zip(_DIMENSIONS, sizes, strict=True))))
        if not list(_against(other, limits)):
            distance = sum(abs(math.log2(size / before)) for size, before in zip(sizes, wanted, strict=True))
            found.append((distance, [-size for size in sizes], other))
    return [other for _, _, other in sorted(found, key=lambda entry: entry[:2])[:count]]


def _without_effectless(layout: LayoutConfig) -> LayoutConfig:
    """`layout` without the settings that do nothing in it."""
    ordinary, changes = LayoutConfig(), dict[str, Any]()
    if layout.pipeline == 1:
        changes["schedule"] = ordinary.schedule
    if layout.pipeline == 1 or layout.schedule != "interleaved":
        changes["stages_per_rank"] = ordinary.stages_per_rank
    if layout.data == 1:
        changes["zero"] = ordinary.zero
    return layout.model_copy(update=changes)


def _written(layout: LayoutConfig) -> str:
    """As a configuration has it, without what is as always."""
    ordinary = LayoutConfig()
    settings = {name: getattr(layout, name) for name in ("zero", "schedule", "stages_per_rank")}
    changed = {name: value for name, value in settings.items() if value != getattr(ordinary, name)}
    words = [f"{name}: {value}" for name, value in (layout.sizes | changed).items()]
    return "{" + ", ".join(words) + "}" if words else "1"
