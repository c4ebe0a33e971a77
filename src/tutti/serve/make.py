"""From a model to a service: with the engine for what it is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from tutti.core.errors import ConfigError
from tutti.serve.asking import Asking
from tutti.serve.engine import AskerBackend, EncoderEngine, Engine, SlotModel, Unsupported
from tutti.serve.load import Found, FoundAsker, Weights, cached_as, set_weights
from tutti.serve.service import Service

#: Tokens of a slot, where the model could see more: what is set aside for all slots is taken from the machine.
_CONTEXT = 4096
#: Tokens of a pass of a model that does not write. Larger ones are hardly faster, and whoever comes next waits longer.
_BUDGET_TOKENS = 256
#: Requests that may wait, and texts where each takes milliseconds.
_QUEUE, _QUEUE_OF_TEXTS = 64, 1024


@dataclass(frozen=True)
class Settings:
    """`name`: None: the model's own. `slots`, `context`: of a model that writes. `queue_length`: None: what suits the
    kind."""

    name: str | None
    slots: int
    context: int | None
    queue_length: int | None
    weights: Weights


def make_service(
    found: Found | FoundAsker, settings: Settings, say: Callable[[str], None]
) -> Service | Asking:
    """`found` as a service, which has begun to work.

    Raises:
        ConfigError: it cannot be served so.
    """
    name, made = settings.name or found.name, int(time.time())
    if isinstance(found, FoundAsker):
        return _asking(found, name, made, settings, say)
    room = min(found.context, settings.context or _CONTEXT)
    say(set_weights(found.model, settings.weights))
    try:
        model = SlotModel(found.model, settings.slots, room, cached_as(found.model))
    except Unsupported as error:
        raise ConfigError(str(error), "export it, and serve it with another program") from error
    queue_length = _QUEUE if settings.queue_length is None else settings.queue_length
    engine = Engine(model, found.tokenizer, end_tokens=found.end_tokens, queue_length=queue_length)
    return Service(name, engine, found.tokenizer, found.render, made, found.vocabulary, settings.slots)


def _asking(
    found: FoundAsker, name: str, made: int, settings: Settings, say: Callable[[str], None]
) -> Asking:
    asker = found.asker
    if found.in_onnx:
        say("weights: as the package has them, by onnxruntime")
    else:
        say(set_weights(asker.objective.model, settings.weights))
        if settings.weights != "as-they-are":
            asker = dataclasses.replace(asker, context=nullcontext())
    queue_length = _QUEUE_OF_TEXTS if settings.queue_length is None else settings.queue_length
    engine = EncoderEngine(AskerBackend.of(asker), budget_tokens=_BUDGET_TOKENS, queue_length=queue_length)
    return Asking(name, engine, asker, made)
