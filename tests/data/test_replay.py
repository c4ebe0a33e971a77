"""Text of what a model knew, replayed beside the new: how much, only to train on, found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutti.config.data import DataConfig
from tutti.config.load import load_config
from tutti.config.task import RememberConfig
from tutti.core import ConfigError, DataError
from tutti.data import Prepared, prepare
from tutti.data.tokenizer import load_for_encoding


def write(path: Path, letter: str, documents: int) -> Path:
    texts = (f"{letter} " * 50 + str(number) for number in range(documents))
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def letters(prepared: Prepared, part: str) -> dict[str, int]:
    """How often each letter stands in `part`, counted in the tokens themselves."""
    tokenizer = load_for_encoding(prepared.tokenizer_directory)
    text = "".join(
        tokenizer.decode(prepared.open_tokens(shard).tolist()) for shard in prepared.splits[part].shards
    )
    return {letter: text.count(letter) for letter in "nk"}


@pytest.mark.parametrize(("share", "old"), [(0.2, 400), (0.5, 400), (0.3, 20)])
def test_the_share_is_that_of_the_text_to_train_on(
    configure: Callable[..., DataConfig], tmp_path: Path, share: float, old: int
) -> None:
    new, known = write(tmp_path / "new.jsonl", "n", 100), write(tmp_path / "known.jsonl", "k", old)
    config = configure(new, validation=0.2, split="document")
    remember = RememberConfig(source=str(known), replay=share)
    prepared = prepare(config, remember=remember)
    plain = prepare(config)
    assert letters(prepared, "validation") == letters(plain, "validation")  # what is new is judged by itself
    found = letters(prepared, "train")
    assert found["n"] == letters(plain, "train")["n"]  # and all of it is read, once
    assert found["k"] / (found["k"] + found["n"]) == pytest.approx(share, abs=0.01)
    assert any(line.startswith("remember.source: ") for line in prepared.choices)
    again = prepare(config, remember=remember)
    assert again.fingerprint == prepared.fingerprint != plain.fingerprint
    other = prepare(config, remember=remember.model_copy(update={"replay": share / 2}))
    assert other.fingerprint != prepared.fingerprint


def test_what_is_in_both_is_new(configure: Callable[..., DataConfig], tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", "n", 100)
    config = configure(new, split="document")
    with pytest.raises(DataError, match=r"remember\.source holds no text that data\.source has not"):
        prepare(config, remember=RememberConfig(source=str(write(tmp_path / "same.jsonl", "n", 50))))


def test_ends_of_documents_cannot_be_kept_aside(configure: Callable[..., DataConfig], tmp_path: Path) -> None:
    new, known = write(tmp_path / "new.jsonl", "n", 5), write(tmp_path / "known.jsonl", "k", 5)
    with pytest.raises(DataError, match="whole documents are kept aside"):
        prepare(configure(new), remember=RememberConfig(source=str(known)))
    with_validation = configure(new, validation_source=str(write(tmp_path / "v.jsonl", "v", 3)))
    prepared = prepare(with_validation, remember=RememberConfig(source=str(known)))
    assert letters(prepared, "train")["k"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.source=[a, b]", "data.weights=[0.5, 0.5]"], "data.weights and remember.replay both say"),
        (["remember.ewc=10"], "remember.ewc is for models that are asked"),
        (["remember.replay=0.0"], "of no use"),
    ],
)
@pytest.mark.parametrize("task", ["language_model", "masked_language_model"])
def test_what_does_not_go_together(words: list[str], said: str, task: str) -> None:
    overrides: list[Any] = ["name=x", f"task={task}", "remember.source=known.jsonl", *words]
    with pytest.raises(ConfigError) as refused:
        load_config(None, overrides)
    assert said in str(refused.value)
