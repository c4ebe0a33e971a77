"""Samples of a language model in which some passages are told again, so that it learns to copy.

What looks at what came before and goes on as it did (an induction head: Olsson et al. 2022, "In-context Learning and
Induction Heads") is what a model needs that is to summarise, answer from a text, or carry a name over. Little text
teaches it late, or never: its words are easier guessed from each other. Here a stretch of the text comes again behind
itself, which nothing but copying foretells.

Each document is taken in passages of 32 to 128 tokens; with the chance `share` the end of a passage, 8 tokens to half
of it, gives way to as many that stand together in what is left of it. What is told again follows from (seed, epoch,
number of the sample) alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tutti.data.prepared import Prepared
from tutti.data.samples import TokenSource

#: Tokens of a passage, and the fewest that are told again.
SHORTEST, LONGEST, LEAST = 32, 128, 8


class RecallSource(TokenSource):
    """As `TokenSource`, some passages told again."""

    def __init__(
        self, prepared: Prepared, split: str, sequence: int, seed: int, *, shift: bool, share: float
    ) -> None:
        super().__init__(prepared, split, sequence, seed, shift)
        self._share = share
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} recall {share} {seed}".encode()).hexdigest()

    def windows(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B, S + 1] tokens."""
        windows = super().windows(epoch, numbers)
        for window, number in zip(windows, numbers.tolist(), strict=True):
            dice = np.random.default_rng([self._seed, epoch, number])
            start = 0
            for stop in [*np.flatnonzero(window == self.end_token).tolist(), len(window)]:
                self._tell_again(window[start:stop], dice)
                start = stop + 1
        return windows

    def _tell_again(self, tokens: NDArray[np.int64], dice: np.random.Generator) -> None:
        """Repeat what comes in some passages of `tokens`, a stretch of one document, in place."""
        start = 0
        while len(tokens) - start >= SHORTEST:
            passage = tokens[start : start + int(dice.integers(SHORTEST, LONGEST, endpoint=True))]
            start += len(passage)
            if dice.random() < self._share:
                again = int(dice.integers(LEAST, len(passage) // 2, endpoint=True))
                first = int(dice.integers(0, len(passage) - 2 * again, endpoint=True))
                passage[-again:] = passage[first : first + again]
