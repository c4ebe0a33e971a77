"""The text, or the labelled examples, of a configuration: made ready, or found ready."""

from __future__ import annotations

from pathlib import Path

from tutti import data, models
from tutti.config import Config
from tutti.core.say import Say, silent
from tutti.data import Prepared
from tutti.data.labelled import PreparedExamples, prepare_examples
from tutti.data.tokenizing import Use
from tutti.hardware import usable_cores
from tutti.tasks import make_text_task
from tutti.train.labelled import reader_of


def prepare(config: Config, *, say: Say = silent) -> Prepared | PreparedExamples:
    """Read, clean, split, tokenize and store the text, or the labelled examples, of `config`; found again by content.

    Raises:
        DataError: the text is missing, broken or too small.
    """
    config = with_tokenizer(config)
    return prepare_labelled(config, say) if config.task.labelled else prepare_text(config, say)


def prepare_text(config: Config, say: Say = silent) -> Prepared:
    """The text of `config`, as `prepare` does it."""
    use: Use = "masks" if config.task.masked else "infill" if config.task.infill else "text"
    return data.prepare(config.data, workers=usable_cores(), say=say, use=use, remember=config.remember)


def prepare_labelled(config: Config, say: Say = silent) -> PreparedExamples:
    """The labelled examples of `config`, as `prepare` does it."""
    return prepare_examples(config.data, make_text_task(config.task), reader_of(config), say, config.remember)


def with_tokenizer(config: Config) -> Config:
    """`config` with a tokenizer: `auto` is the one that its model was trained with."""
    if config.data.tokenizer != "auto":
        return config
    tokenizer = "bpe"
    if config.model.path is not None and not config.model.from_scratch:
        directory = models.model_directory(Path(config.model.path).expanduser())
        tokenizer = str(directory) if (directory / "tokenizer.json").is_file() else "bpe"
    return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": tokenizer})})
