"""`recipe: auto`: what it sets goes by the examples and the model, and never against what the user says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from encoders import write_encoder, write_intents
from tutti import api
from tutti.config import load_config
from tutti.core.errors import CheckpointError, ConfigError
from tutti.sync.batches import BatchSizes
from tutti.train import recipe
from tutti.train.recipe import against_learning_by_heart


def chosen(
    *words: str, examples: int = 9_000, pretrained: bool = True, dropout: bool = True
) -> dict[str, Any]:
    """What it comes to, with `said`: the keys of which it says why."""
    config = load_config(None, ["task=classify", "recipe=auto", *words])
    found, said = against_learning_by_heart(config, examples, pretrained=pretrained, dropout=dropout)
    return {
        "average": found.train.average,
        "r_drop": found.regularise.r_drop,
        "said": [re.split(" = | for ", reason)[0] for reason in said],
    }


def test_thousands_of_examples_and_a_trained_model() -> None:
    assert chosen() == {"average": 0.2, "r_drop": 1.0, "said": ["regularise.r_drop", "train.average"]}
    nothing = {"average": 0.0, "r_drop": 0.0, "said": ["recipe: auto sets no R-Drop"]}
    assert chosen(examples=600) == nothing
    assert chosen(pretrained=False) == nothing
    assert chosen(dropout=False) == nothing


@pytest.mark.parametrize(
    ("words", "average", "r_drop"),
    [
        (("train.average=0.5",), 0.5, 1.0),
        (("regularise.r_drop=0.3",), 0.0, 0.3),
        (("regularise.adversarial=0.5",), 0.0, 0.0),  # which takes a second pass of its own
        (("task.contrast=true",), 0.0, 0.0),
        (("distil=runs/teacher",), 0.0, 0.0),
        (("sync=server",), 0.0, 1.0),  # whose server has no average to judge by
        (("task=tag",), 0.0, 0.0),
    ],
)
def test_what_the_user_says_stays(words: tuple[str, ...], average: float, r_drop: float) -> None:
    found = chosen(*words)
    assert (found["average"], found["r_drop"]) == (average, r_drop)


def test_plain_is_left_alone_and_text_without_labels_refused() -> None:
    config = load_config(None, ["task=classify"])
    assert against_learning_by_heart(config, 9_000, pretrained=True, dropout=True) == (config, [])
    for task in ("language_model", "masked_language_model"):
        with pytest.raises(ConfigError, match="recipe: auto is for labelled examples"):
            load_config(None, [f"task={task}", "recipe=auto"])


def test_a_run_says_what_it_chose_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "_R_DROP_EXAMPLES", 1)
    encoder = write_encoder(tmp_path / "bert")
    source = write_intents(tmp_path)
    words = [
        *("name=auto", f"runs={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "recipe=auto"),
        *("task=classify", f"model={encoder}", f"data.source={source}", "data.sequence=32"),
        *("replicas=1", "train.precision=fp32", "train.batch=4"),
    ]
    report = api.train(load_config(None, [*words, "train.steps=2"]))
    for key in ("regularise.r_drop", "train.average"):
        assert any(choice.startswith(f"{key} = ") for choice in report["choices"])
    monkeypatch.setattr(recipe, "_R_DROP_EXAMPLES", 1_000)  # another version's rule: the run keeps its own
    assert api.train(load_config(None, [*words, "train.steps=4"]), resume=True)["steps"] == 4
    kept = load_config(tmp_path / "runs" / "auto" / "config.yaml")
    assert (kept.train.average, kept.regularise.r_drop) == (0.2, 1.0)
    with pytest.raises(CheckpointError, match="was started with recipe = auto, not plain"):
        api.train(load_config(None, [*words, "recipe=plain", "train.steps=6"]), resume=True)


def test_what_is_computed_twice_is_seen_half_as_often() -> None:
    sizes = BatchSizes.of(load_config(None, []).train, 32)
    once, _ = recipe.choose_steps(None, 9_003, sizes, labelled=True)
    twice, why = recipe.choose_steps(None, 9_003, sizes, labelled=True, passes=2)
    assert (once, twice) == (sizes.steps_for(11 * 9_003), sizes.steps_for(6 * 9_003))
    assert "6 epochs of 9,003 examples: about 50,000 are seen" in why
