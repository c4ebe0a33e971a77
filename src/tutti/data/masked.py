"""Samples of a masked language model: windows over the token stream, framed as encoders know texts, with masks.

A sample of S tokens is the class token, S − 2 tokens of the stream, and the separator (a tokenizer without these has
windows of S). Documents stand behind each other with the end token between, and see each other: RoBERTa's full
sentences (Liu et al. 2019, arXiv 1907.11692). What is masked follows from (seed, epoch, number of the sample) alone, so
every epoch has other masks, and any rank could make any sample; of a part that is not trained on it is always the same.

B samples, S tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tutti.core.errors import DataError
from tutti.core.types import Batch, SampleSource
from tutti.data.masking import By, choose, disguise
from tutti.data.prepared import Prepared
from tutti.data.samples import NO_TARGET, TokenSource
from tutti.data.tokenizer import load_for_encoding, marks_in, vocabulary_of
from tutti.data.words import WordEdges


@dataclass(frozen=True)
class Marks:
    """What a tokenizer has for a masked language model.

    `written`: the mask in a text. `first`, `last`: what stands around a text (None: nothing does). `ordinary`: the
    tokens that are no marks.
    """

    mask: int
    written: str
    first: int | None
    last: int | None
    ordinary: NDArray[np.int64]
    edges: WordEdges

    @classmethod
    def of(cls, directory: Path) -> Marks:
        """Of the tokenizer in `directory`.

        Raises:
            DataError: it has no mask token.
        """
        tokenizer = load_for_encoding(directory)
        numbers = marks_in(directory, tokenizer)
        if "mask_token" not in numbers:
            raise DataError(
                f"the tokenizer at {directory} has no mask token",
                "a masked language model takes one that has, such as that of the encoder in model.path, or "
                "data.tokenizer: bpe",
            )
        vocabulary = vocabulary_of(tokenizer)
        return cls(
            numbers["mask_token"],
            str(tokenizer.id_to_token(numbers["mask_token"])),
            numbers.get("cls_token"),
            numbers.get("sep_token"),
            _ordinary(tokenizer),
            WordEdges.of(tokenizer, vocabulary),
        )

    @property
    def frame(self) -> int:
        """Tokens that stand around a text."""
        return (self.first is not None) + (self.last is not None)


def _ordinary(tokenizer: Tokenizer) -> NDArray[np.int64]:
    added = json.loads(tokenizer.to_str()).get("added_tokens", [])
    special = {item["id"] for item in added if item["special"]}
    numbers = set(tokenizer.get_vocab(with_added_tokens=True).values()) - special
    return np.array(sorted(numbers), dtype=np.int64)


class MaskedSource(SampleSource):
    """Samples of one part of prepared text, masked.

    Batch: `input_ids`, `labels`, each int64 [B, S]; the label of what is not to be guessed is −100.

    Raises:
        DataError: no such part, it is shorter than one sample, or the tokenizer has no mask token.
    """

    def __init__(
        self, prepared: Prepared, split: str, sequence: int, seed: int, *, share: float, by: By, shift: bool
    ) -> None:
        """`share`: of the tokens, those to guess. `shift`: in each epoch windows begin elsewhere, and masks differ."""
        self.marks = Marks.of(prepared.tokenizer_directory)
        self._windows = TokenSource(prepared, split, sequence - self.marks.frame, seed, shift)
        self._may = np.zeros(prepared.vocabulary, dtype=np.bool_)
        self._may[self.marks.ordinary] = True
        self.share, self._by, self._seed, self._shift = share, by, seed, shift
        self.fingerprint = hashlib.sha256(
            f"{self._windows.fingerprint} masked {share} {by} {seed}".encode()
        ).hexdigest()

    def samples_in_epoch(self, epoch: int) -> int:
        """Number of windows of epoch `epoch`; at least 1."""
        return self._windows.samples_in_epoch(epoch)

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The samples `indices` of `epoch`, in that order; raises as `TokenSource.load`."""
        windows = self._windows.load(epoch, indices)["input_ids"].numpy()  # without what comes behind
        seen, labels = np.empty_like(windows), np.empty_like(windows)
        for row, number in enumerate(indices):
            dice = np.random.default_rng([self._seed, epoch if self._shift else 0, int(number)])
            seen[row], labels[row] = self._mask(windows[row], dice)
        return self._framed(seen, labels)

    def empty(self) -> Batch:
        """One sample with nothing to guess."""
        window = self._windows.empty()["input_ids"].numpy()
        return self._framed(window, np.full_like(window, NO_TARGET))

    def _mask(
        self, tokens: NDArray[np.int64], dice: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What is seen of `tokens`, and the labels."""
        words = np.where(self._may[tokens], self.marks.edges.words(tokens), -1)
        units = choose(words, self.share, self._by, dice)
        seen = disguise(
            tokens, units, self.marks.mask, self.marks.ordinary, dice, together=self._by == "spans"
        )
        return seen, np.where(units > 0, tokens, NO_TARGET)

    def _framed(self, seen: NDArray[np.int64], labels: NDArray[np.int64]) -> Batch:
        """[B, L] with the marks around each row."""

        def column(value: int) -> NDArray[np.int64]:
            return np.full((len(seen), 1), value, dtype=np.int64)

        first, last = self.marks.first, self.marks.last
        before = [column(first)] if first is not None else []
        after = [column(last)] if last is not None else []
        none = column(NO_TARGET)
        return {
            "input_ids": torch.from_numpy(np.hstack([*before, seen, *after])),
            "labels": torch.from_numpy(np.hstack([*(none for _ in before), labels, *(none for _ in after)])),
        }
