"""Models of every task as Hugging Face directories, and a service over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from encoders import write_encoder
from served_models import served
from tutti.serve.answering import Answering
from tutti.serve.asking import Asking
from tutti.serve.http import make_app
from tutti.serve.load import FoundAsker, load_any
from tutti.serve.make import Settings, make_service
from tutti.serve.service import Service

KEY = "sk-of-the-test"
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
_MADE = {
    "classify": (AutoModelForSequenceClassification, ["exchange", "late", "lost"]),
    "tag": (AutoModelForTokenClassification, TAGS),
    "answer": (AutoModelForQuestionAnswering, None),
    "embed": (AutoModel, None),
}


def write_task(directory: Path, kind: str, **config: Any) -> Path:
    """A tiny encoder with a head for `kind`, whose answers differ from text to text."""
    write_encoder(directory)
    factory, labels = _MADE[kind]
    if labels is not None:
        config |= {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    torch.manual_seed(1)
    model = factory.from_pretrained(directory, **config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return directory


def make(found: FoundAsker, **settings: Any) -> Asking:
    """The service of `found`."""
    given: dict[str, Any] = {
        "name": None,
        "slots": 1,
        "context": None,
        "queue_length": None,
        "engine": "native",
    }
    service = make_service(found, Settings(**(given | {"weights": "as-they-are"} | settings)), lambda _: None)
    assert isinstance(service, Asking)
    return service


def open_task(directory: Path, **settings: Any) -> Asking:
    """The service of the model in `directory`."""
    found = load_any(directory)
    assert isinstance(found, FoundAsker)
    return make(found, **settings)


@contextmanager
def listening_at(service: Service | Asking, answering: Answering | None = None) -> Iterator[str]:
    """The address of `service`, which ends with this."""
    try:
        with served(make_app(service, KEY, answering)) as address:
            yield address
    finally:
        service.close()
