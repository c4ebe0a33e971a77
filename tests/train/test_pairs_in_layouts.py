"""A causal model that learns from pairs of texts does so in every layout: the same losses as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutti import api
from tutti.config import load_config
from tutti.core import read_events

LLAMA = (
    "{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 2}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pairs")
    words = ["the", "card", "is", "lost", "and", "my", "bank", "was", "not", "open", "when", "please", "help"]
    lines = [" ".join(words[(3 * n + k) % len(words)] for k in range(2 + n % 5)) for n in range(60)]
    pairs = "".join(f"{line}\t{line.upper()}\n" for line in dict.fromkeys(lines))
    (place / "pairs.tsv").write_text("source\ttarget\n" + pairs)
    return place


def losses(place: Path, name: str, *words: str) -> tuple[list[float], dict[str, Any]]:
    """Of every step and of every validation."""
    config = load_config(
        None,
        [
            *(f"name={name}", f"runs={place / 'runs'}", f"data.cache={place / 'cache'}", "task=translate"),
            *(f"data.source={place / 'pairs.tsv'}", "data.validation=0.2", "data.sequence=64"),
            *(f"model.config={LLAMA}", "train.steps=8", "train.batch=8", "train.micro_batch=2"),
            *("train.precision=fp32", "train.learning_rate=3e-3", "evaluate.every=4", *words),
        ],
    )
    report = api.train(config, console=False)
    run = place / "runs" / name
    steps = {event["step"]: event["loss"] for event in read_events(run, "step") if "loss" in event}
    found = [steps[step] for step in sorted(steps)]
    return found + [event["loss"] for event in read_events(run, "validation")], report


@pytest.mark.slow
def test_the_losses_are_those_of_one_process(place: Path) -> None:
    expected, _ = losses(place, "alone", "replicas=1")
    assert len(expected) == 10 and expected[7] < expected[0]
    layouts = {
        "tensor": ("replicas=1", "layout.tensor=2"),
        "pipeline": ("replicas=1", "layout.pipeline=2"),
        "context": ("replicas=1", "layout.context=2"),
        "replicas": ("replicas=2", "layout.tensor=2"),
    }
    for name, words in layouts.items():
        found, report = losses(place, name, *words)
        assert report["state"] == "finished" and report["world_size"] == (4 if name == "replicas" else 2)
        assert found == pytest.approx(expected, rel=1e-4), name
