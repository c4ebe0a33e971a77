"""Which head a model starts with: that of its directory, or a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from encoders import write_encoder
from tutti.config.model import ModelConfig
from tutti.models import draw_headed_blueprint

LABELS = ("bad", "good", "so-so")


def saved(place: Path, factory: Any, labels: tuple[str, ...]) -> Path:
    """A model with a head for `labels`, trained as it were."""
    encoder = write_encoder(place / "encoder")
    names = dict(enumerate(labels))
    model = factory.from_pretrained(encoder, id2label=names, label2id={v: k for k, v in names.items()})
    torch.nn.init.constant_(model.classifier.bias, 7.0)
    model.save_pretrained(place / "model")
    return place / "model"


@pytest.mark.parametrize(
    ("factory", "labels", "kept"),
    [
        (AutoModelForSequenceClassification, LABELS, True),
        (AutoModelForSequenceClassification, ("good", "bad", "so-so"), False),
        (AutoModelForSequenceClassification, ("bad", "good"), False),
        (AutoModelForTokenClassification, LABELS, False),
    ],
    ids=["the same", "other names", "other number", "other task"],
)
def test_a_head_is_kept_for_the_same_task_and_labels_alone(
    tmp_path: Path, factory: Any, labels: tuple[str, ...], kept: bool
) -> None:
    directory = saved(tmp_path, factory, labels)
    vocabulary = AutoModelForTokenClassification.from_pretrained(directory).config.vocab_size
    blueprint = draw_headed_blueprint(
        ModelConfig(path=str(directory)),
        "classify",
        vocabulary=vocabulary,
        labels=LABELS,
        length=32,
        seed=3,
        pad=0,
        end=3,
    )
    model = blueprint.build()
    assert bool((model.classifier.bias == 7.0).all()) is kept
    assert ("with its head" if kept else "with a new head") in blueprint.choices[0]
    body = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder").base_model.state_dict()
    for name, tensor in model.base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, body[name]), name
    again = blueprint.build()
    assert torch.equal(again.classifier.weight, model.classifier.weight)
