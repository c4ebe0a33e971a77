"""Whether a head is new, as a run learns it from what `model` names, and what follows from that."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoders import write_encoder, write_intents
from tutti.config import load_config
from tutti.core.errors import ConfigError
from tutti.data.labelled import PreparedExamples
from tutti.models.tuning import save_adapters, tune
from tutti.resolve import Resolved
from tutti.starting.start import start_run
from tutti.train.labelled import blueprint_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bert`: an encoder without a head; `classifier`: with one for the three intents; `lora` and `prompt`: adapters on
    `bert`, with one for them; `two.tsv`: examples of two of them; `half.tsv`: half of all."""
    place = tmp_path_factory.mktemp("heads")
    write_encoder(place / "bert")
    lines = write_intents(place).read_text().splitlines()
    (place / "two.tsv").write_text("\n".join(line for line in lines if "lost_card" not in line) + "\n")
    (place / "half.tsv").write_text("\n".join(lines[:61]) + "\n")
    for method in ("lora", "prompt"):
        resolved, prepared = start(place, "bert", f"tune={method}")
        blueprint = blueprint_of(resolved.config, prepared)
        save_adapters(
            tune(blueprint.build(), resolved.config).model, blueprint.build(), resolved.config, place / method
        )
    blueprint.build().save_pretrained(place / "classifier")
    for file in place.glob("bert/tokenizer*"):
        (place / "classifier" / file.name).write_bytes(file.read_bytes())
    return place


def start(place: Path, model: str, *words: str) -> tuple[Resolved, PreparedExamples]:
    config = load_config(
        None,
        [
            *(
                "name=heads",
                "task=classify",
                f"model={place / model}",
                f"data.source={place / 'intents.tsv'}",
            ),
            *(f"data.cache={place / 'cache'}", "data.sequence=32", "train.steps=4", "train.precision=fp32"),
            *("replicas=1", "train.learning_rate=1e-4", *words),
        ],
    )
    resolved, prepared = start_run(config, lambda text: None)
    assert isinstance(prepared, PreparedExamples)
    return resolved, prepared


@pytest.mark.parametrize(
    ("model", "words", "head", "rate"),
    [
        ("bert", (), "a new head for 3", 10.0),
        ("bert", ("tune={method: last, layers: 1}",), "a new head for 3", 3.3),
        ("classifier", (), "its head for 3", 1.0),
        ("lora", (), "the head of its adapters for 3", 1.0),
        ("lora", ("tune={method: last, layers: 1}",), "the head of its adapters for 3", 1.0),
        ("lora", ("tune=lora",), "the head of its adapters for 3", 1.0),
        ("prompt", ("tune=prompt",), "the head of its adapters for 3", 1.0),
    ],
)
def test_only_a_head_that_nobody_brings_is_new(
    place: Path, model: str, words: tuple[str, ...], head: str, rate: float
) -> None:
    resolved, _ = start(place, model, *words)
    assert resolved.config.train.head_rate == rate
    assert any(choice.endswith(f"with {head} labels") for choice in resolved.choices)


def test_a_head_of_adapters_for_other_labels_is_replaced_by_a_new_one(place: Path) -> None:
    resolved, _ = start(place, "lora", f"data.source={place / 'two.tsv'}")
    assert resolved.config.train.head_rate == 10
    assert any(choice.endswith("with a new head for 2 labels") for choice in resolved.choices)


def test_what_adapters_with_a_head_know_can_be_held(place: Path) -> None:
    words = (
        f"data.source={place / 'half.tsv'}",
        f"remember.source={place / 'intents.tsv'}",
        "remember.ewc=10",
    )
    start(place, "lora", *words)
    with pytest.raises(ConfigError, match="no head for these labels"):
        start(place, "bert", *words)
