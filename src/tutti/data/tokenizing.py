"""The tokenizer of prepared text: trained on it, or somebody else's, put where the rest will be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from tutti.config.data import DataConfig
from tutti.core.errors import DataError
from tutti.core.files import fsync_directory, write_text_atomically
from tutti.data.corpus import Corpus
from tutti.data.prepared import TOKENIZER
from tutti.data.reading import TextSettings
from tutti.data.settings import TOKENIZER_SAMPLE_BYTES
from tutti.data.texts import SegmentReader
from tutti.data.tokenizer import (
    choose_vocabulary,
    digest_of_directory,
    hugging_face_directory,
    import_tokenizer,
    load_for_encoding,
    save_tokenizer,
    train_bpe,
    train_characters,
    vocabulary_of,
    with_infilling,
    with_separators,
)

#: What text is prepared for: to go on from; to guess what is masked, or to fill in what is in the middle, for which a
#: tokenizer has marks.
Use = Literal["text", "masks", "infill"]
#: What puts such marks into a tokenizer that is trained here.
_MARKED: dict[str, Callable[[Tokenizer], Tokenizer]] = {"masks": with_separators, "infill": with_infilling}

_TRAINED_HERE = ("bpe", "characters")


def name_tokenizer(config: DataConfig, use: Use) -> str:
    """What names the tokenizer before there is one.

    Raises:
        DataError: it cannot be had.
    """
    if config.tokenizer != "bpe" and config.vocabulary != "auto":
        raise DataError(
            f"data.vocabulary is {config.vocabulary}, but tokenizer '{config.tokenizer}' has its own size",
            "leave data.vocabulary out, or set data.tokenizer: bpe",
        )
    if config.tokenizer in _TRAINED_HERE:
        marks = "" if use == "text" else f" {use}"
        return f"{config.tokenizer} {config.vocabulary}{marks}"
    digest = digest_of_directory(hugging_face_directory(config.tokenizer))
    # Windows to guess masked words in have marks of their own; others begin documents as the tokenizer does.
    return digest if use == "masks" else f"{digest} begun"


def make_tokenizer(
    config: DataConfig,
    corpus: Corpus,
    settings: TextSettings,
    use: Use,
    directory: Path,
    say: Callable[[str], None],
) -> tuple[str, list[str]]:
    """Put the tokenizer into its place in `directory`, unless an earlier attempt did; its digest, and the choices.

    Raises:
        DataError: it cannot be had, or not with this text.
    """
    chosen = []
    size = 0
    if config.tokenizer == "bpe":
        size = config.vocabulary if config.vocabulary != "auto" else 0
        if not size:
            size, reason = choose_vocabulary(corpus.train_bytes)
            chosen = [f"data.vocabulary = {size}: {reason}"]
    final, seal = directory / TOKENIZER, directory / f"{TOKENIZER}.sha256"
    if not (final.is_dir() and seal.is_file() and seal.read_text().strip() == digest_of_directory(final)):
        beside = directory / f".{TOKENIZER}.{os.getpid()}.tmp"
        beside.mkdir()
        try:
            if config.tokenizer in _TRAINED_HERE:
                say(f"training the tokenizer ({config.tokenizer})")
                tokenizer = _train(config, corpus, settings, size)
                save_tokenizer(_MARKED[use](tokenizer) if use in _MARKED else tokenizer, beside)
            else:
                import_tokenizer(config.tokenizer, beside)
            for path in beside.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if final.exists():
                shutil.rmtree(final)
            beside.rename(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        fsync_directory(directory)
        write_text_atomically(seal, digest_of_directory(final) + "\n")
    if chosen:
        filled = vocabulary_of(load_for_encoding(final))
        if filled < size:
            chosen = [
                f"data.vocabulary = {filled}: all that the text fills ({corpus.train_bytes / 1e6:.2f} MB)"
            ]
    return seal.read_text().strip(), chosen


def _train(config: DataConfig, corpus: Corpus, settings: TextSettings, size: int) -> Tokenizer:
    if config.tokenizer == "characters":
        return train_characters(_train_texts(corpus, settings, None))
    texts = _train_texts(corpus, settings, TOKENIZER_SAMPLE_BYTES)
    return train_bpe(texts, size, exactly=config.vocabulary != "auto")


def _train_texts(corpus: Corpus, settings: TextSettings, limit: int | None) -> Iterator[str]:
    """The text to train on in pieces; with `limit`, about so many bytes of it, taken evenly from all over."""
    part = corpus.plan["train"]
    reader = SegmentReader(corpus.files, part.marks, settings)
    share = 1.0 if limit is None else min(1.0, limit / max(corpus.train_bytes, 1))
    try:
        for index, row in enumerate(part.segments):
            if int((index + 1) * share) > int(index * share):
                yield from reader.pieces(row)
    finally:
        reader.close()
