"""From a model to a service: with the engine for what it is."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from tutti.core.errors import ConfigError, ModelError
from tutti.models.quantized import QuantizedLinear
from tutti.serve.answering import Answering
from tutti.serve.asking import Asking
from tutti.serve.documents import Library
from tutti.serve.engine import AskerBackend, EncoderEngine, Engine, SlotModel, Unsupported
from tutti.serve.engine.onnx import in_onnx, tokens_per_second
from tutti.serve.engine.paged import PagedEngine
from tutti.serve.kinds import ANSWERER, EMBEDDER, WRITER
from tutti.serve.load import Found, FoundAsker, cached_as, load_any, set_weights
from tutti.serve.service import Service
from tutti.serve.settings import Settings
from tutti.serve.trial import longer_trial

#: Tokens of a slot, where the model could see more: what is set aside for all slots is taken from the machine.
_CONTEXT = 4096
#: Tokens of a pass of a model that does not write. Larger ones are hardly faster, and whoever comes next waits longer.
_BUDGET_TOKENS = 256
#: Requests that may wait, and texts where each takes milliseconds.
_QUEUE, _QUEUE_OF_TEXTS = 64, 1024


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
    if settings.engine == "onnx":
        raise ConfigError(f"{found.name} writes, which --engine onnx does not", "leave it out")
    room = min(found.context, settings.context or _CONTEXT)
    say(set_weights(found.model, settings.weights))
    engine = _writing_engine(found, settings, room, say)
    most = settings.most_texts or settings.slots
    return Service(name, engine, found.tokenizer, found.turn, made, found.vocabulary, most)


def _writing_engine(
    found: Found, settings: Settings, room: int, say: Callable[[str], None]
) -> Engine | PagedEngine:
    """In slots; where the architecture does not go there, as transformers serves it.

    Raises:
        ConfigError: neither can be.
    """
    queue_length = _QUEUE if settings.queue_length is None else settings.queue_length
    try:
        model = SlotModel(found.model, settings.slots, room, cached_as(found.model))
        return Engine(model, found.tokenizer, end_tokens=found.end_tokens, queue_length=queue_length)
    except Unsupported as error:
        reason = error
    try:
        engine = PagedEngine(
            found.model,
            found.tokenizer,
            texts=settings.slots,
            context=room,
            end_tokens=found.end_tokens,
            queue_length=queue_length,
        )
    except Unsupported as error:
        raise ConfigError(f"{reason}; {error}", "export it, and serve it with another program") from error
    say(f"engine: transformers' continuous batching, for {reason}")
    return engine


def make_answering(
    service: Service | Asking, settings: Settings, say: Callable[[str], None]
) -> Answering | None:
    """What answers questions from documents with `service`; None: there are no documents.

    Raises:
        ConfigError: it cannot be done with such a model.
        DataError: the documents cannot be read.
    """
    if settings.documents is None:
        if settings.embedder is not None:
            raise ConfigError("--embedder searches documents, and there are none", "give --documents FOLDER")
        return None
    if service.kind not in (WRITER, EMBEDDER, ANSWERER):
        raise ConfigError(
            f"{service.name} is {service.kind}, which answers no questions",
            "serve a model that writes, finds answers in texts, or makes vectors of them",
        )
    embedder = service if isinstance(service, Asking) and service.kind is EMBEDDER else None
    if settings.embedder is not None:
        found = load_any(settings.embedder)
        if not isinstance(found, FoundAsker) or found.asker.task.kind != "embed":
            raise ConfigError(
                f"{settings.embedder} makes no vectors of texts", "give one that learned to embed"
            )
        say(f"embedder: {found.name}")
        embedder = _asking(found, found.name, service.made, settings, say)
    return Answering(service, Library(settings.documents, embedder, say))


def _asking(
    found: FoundAsker, name: str, made: int, settings: Settings, say: Callable[[str], None]
) -> Asking:
    queue_length = _QUEUE_OF_TEXTS if settings.queue_length is None else settings.queue_length
    backend = _backend(found, settings, say)
    engine = EncoderEngine(backend, budget_tokens=_BUDGET_TOKENS, queue_length=queue_length)
    return Asking(name, engine, backend.asker, made)


def _backend(found: FoundAsker, settings: Settings, say: Callable[[str], None]) -> AskerBackend:
    """What computes: as the settings have it, or the faster one."""
    if found.in_onnx:
        if settings.engine == "native":
            raise ConfigError(
                f"{found.name} is a package for onnxruntime",
                "leave out --engine, or compress the run without onnx",
            )
        say("engine: onnx, with weights as the package has them")
        return AskerBackend(found.asker)
    onnx = None
    if settings.engine == "onnx" and (reason := _no_onnx(found, settings)) is not None:
        raise ConfigError(f"--engine onnx: {reason}", "leave it out")
    if settings.engine == "onnx" or (settings.engine == "auto" and _no_onnx(found, settings) is None):
        try:
            onnx = AskerBackend(in_onnx(found.asker, int8=settings.weights != "as-they-are"))
        except ModelError as error:
            if settings.engine == "onnx":
                raise
            say(f"engine: native; onnx cannot be had: {error.problem}")
    if onnx is not None and settings.engine == "onnx":
        say(f"engine: onnx, weights: {'int8' if settings.weights != 'as-they-are' else 'fp32'}")
        return onnx
    weights = set_weights(found.asker.objective.model, settings.weights)
    asker = found.asker
    if settings.weights != "as-they-are":
        asker = replace(asker, context=nullcontext())
    native = AskerBackend(asker)
    if onnx is not None:
        kind, names = asker.task.kind, asker.labels.names
        records = [longer_trial(kind, times, names) for times in (1, 2, 3, 4, 2, 1)]
        rows = asker.read(asker.task.asked_about(records))
        speeds = tokens_per_second([native, onnx], [rows[number] for number in range(len(rows))])
        measured = "here it computes {:,.0f} tokens a second, {} {:,.0f}".format
        if speeds[1] > speeds[0]:
            say(f"engine: onnx; {measured(speeds[1], 'torch', speeds[0])}")
            return onnx
        say(f"engine: native; {measured(speeds[0], 'onnxruntime', speeds[1])}")
    say(weights)
    return native


def _no_onnx(found: FoundAsker, settings: Settings) -> str | None:
    """Why onnxruntime is out of the question; None: it is not."""
    if settings.weights == "bf16":
        return "it computes in fp32 or int8, not in bf16"
    if any(isinstance(module, QuantizedLinear) for module in found.asker.objective.modules()):
        return "the package has its weights in whole numbers for torch"
    if torch.cuda.is_available():
        return "it computes on the CPU, and there is a GPU"
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
        return "onnxruntime or onnxscript is not installed (pip install 'tutti[compress]')"
    return None
