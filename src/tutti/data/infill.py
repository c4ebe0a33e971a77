"""Samples of a language model of which some documents are told so that it learns to fill in what is in their middle.

In every window each stretch of one document is, with the chance `share`, cut at two random characters and turned round
(see `core.infilling`), in either order with the same chance. It stays as long as it was: the three marks, and what
else the cuts cost, come off the end of the suffix. One that is too short for that, or whose tokens do not stand for its
text (it begins within a character), stays as it is. What is turned round follows from (seed, epoch, number of the
sample) alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import DataError
from tutti.core.infilling import Sentinels
from tutti.data.prepared import Prepared
from tutti.data.samples import TokenSource
from tutti.data.tokenizer import begin_token_of, load_for_encoding


class InfillSource(TokenSource):
    """As `TokenSource`, some documents turned round.

    Raises:
        DataError: as `TokenSource`; the tokenizer has no marks for it.
    """

    def __init__(
        self, prepared: Prepared, split: str, sequence: int, seed: int, *, shift: bool, share: float
    ) -> None:
        super().__init__(prepared, split, sequence, seed, shift)
        self._tokenizer = load_for_encoding(prepared.tokenizer_directory)
        sentinels = Sentinels.of(self._tokenizer.token_to_id)
        if sentinels is None:
            raise DataError(
                f"the tokenizer at {prepared.tokenizer_directory} has no marks for task.infill",
                "take one that has (as of StarCoder, Qwen coder, Code Llama, DeepSeek coder), data.tokenizer: bpe, or "
                "leave task.infill out",
            )
        self._sentinels, self._share = sentinels, share
        self._begin_token = begin_token_of(prepared.tokenizer_directory, self._tokenizer)
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} infill {share} {seed}".encode()).hexdigest()

    def windows(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B, S + 1] tokens."""
        windows = super().windows(epoch, numbers)
        for window, number in zip(windows, numbers.tolist(), strict=True):
            dice = np.random.default_rng([self._seed, epoch, number])
            start = 0
            for stop in [*np.flatnonzero(window == self.end_token).tolist(), len(window)]:
                if dice.random() < self._share:
                    begun = start < stop and window[start] == self._begin_token
                    self._turn_round(window[start + begun : stop], dice)
                start = stop + 1
        return windows

    def _turn_round(self, tokens: NDArray[np.int64], dice: np.random.Generator) -> None:
        """Tell `tokens`, a stretch of one document, in another order, in place."""
        tokenizer, given = self._tokenizer, tokens.tolist()
        text = tokenizer.decode(given, skip_special_tokens=False)
        if tokenizer.encode(text, add_special_tokens=False).ids != given:
            return
        first, last = sorted(dice.integers(0, len(text) + 1, 2).tolist())
        prefix, middle, suffix = (
            tokenizer.encode(part, add_special_tokens=False).ids
            for part in (text[:first], text[first:last], text[last:])
        )
        room = len(given) - 3 - len(prefix) - len(middle)
        if not 0 <= room <= len(suffix):
            return
        told = self._sentinels.tell(prefix, middle, suffix[:room], suffix_first=dice.random() < 0.5)
        tokens[:] = told
