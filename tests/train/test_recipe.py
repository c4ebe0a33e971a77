"""`recipe: auto`: what it sets goes by the examples and the model, and never against what the user says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders import write_encoder, write_intents
from tutti import api
from tutti.config import load_config
from tutti.core.errors import CheckpointError, ConfigError
from tutti.train.recipe import against_learning_by_heart


def chosen(*words: str, examples: int = 1000, blocks: int = 6, pretrained: bool = True) -> dict[str, Any]:
    """What it comes to, with `said`: the keys of which it says why."""
    config = load_config(None, ["task=classify", "recipe=auto", *words])
    found, said = against_learning_by_heart(config, examples, blocks, pretrained=pretrained)
    return {
        "decay": found.train.layer_decay,
        "average": found.train.average,
        "r_drop": found.regularise.r_drop,
        "said": [reason.split(" = ")[0] for reason in said],
    }


def test_few_examples_and_a_trained_model() -> None:
    found = chosen()
    assert found["decay"] ** 6 == pytest.approx(1 / 3, rel=0.01)
    assert (found["average"], found["r_drop"]) == (0.2, 1.0)
    assert found["said"] == ["train.layer_decay", "train.average", "regularise.r_drop"]
    assert chosen(blocks=24)["decay"] ** 24 == pytest.approx(1 / 3, rel=0.02)
    assert chosen(examples=50_000)["r_drop"] == 0
    assert chosen(pretrained=False)["decay"] == 1


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("train.layer_decay=0.9",), "decay", 0.9),
        (("train.average=0.5",), "average", 0.5),
        (("regularise.r_drop=0.3",), "r_drop", 0.3),
        (("regularise.adversarial=0.5",), "r_drop", 0.0),  # which takes a second pass of its own
        (("tune=lora", "model=somewhere"), "decay", 1.0),
        (("train.optimizer=muon",), "decay", 1.0),
        (("task.contrast=true",), "r_drop", 0.0),
        (("distil=runs/teacher",), "r_drop", 0.0),
        (("sync=server",), "average", 0.0),
    ],
)
def test_what_the_user_says_stays(words: tuple[str, ...], key: str, value: float) -> None:
    assert chosen(*words)[key] == value


def test_what_is_not_asked_has_no_such_recipe() -> None:
    for task in ("language_model", "translate", "masked_language_model"):
        with pytest.raises(ConfigError, match="recipe: auto is for models that are asked"):
            load_config(None, [f"task={task}", "recipe=auto"])
    config = load_config(None, ["task=classify"])
    assert against_learning_by_heart(config, 100, 6, pretrained=True) == (config, [])


def test_a_run_says_what_it_chose_and_goes_on_with_it(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "bert")
    intents = write_intents(tmp_path)
    words = [
        *("name=auto", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "recipe=auto"),
        *("task=classify", f"model={encoder}", f"data.source={intents}", "data.sequence=32"),
        *("replicas=1", "train.precision=fp32", "train.batch=4"),
    ]
    report = api.train(load_config(None, [*words, "train.steps=2"]))
    for key in ("train.layer_decay", "train.average", "regularise.r_drop"):
        assert any(choice.startswith(f"{key} = ") for choice in report["choices"])
    assert api.train(load_config(None, [*words, "train.steps=4"]), resume=True)["steps"] == 4
    kept = load_config(tmp_path / "runs" / "auto" / "config.yaml")
    assert (kept.train.average, kept.regularise.r_drop) == (0.2, 1.0)
    assert 0 < kept.train.layer_decay < 1
    with pytest.raises(CheckpointError, match="was started with recipe = auto, not plain"):
        api.train(load_config(None, [*words, "recipe=plain", "train.steps=6"]), resume=True)
