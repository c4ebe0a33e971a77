"""Which tokens of a row a masked language model has to guess, and what it sees in their place.

Of L tokens that are no marks, round(share · L) are chosen (at least one), as `by` says:

    tokens   each by itself (Devlin et al. 2019, arXiv 1810.04805)
    words    words as a whole, in random order until they are as many (whole-word masking of the same authors)
    spans    stretches of n words, n ~ Geo(0.2) cut off at 10, from random places (Joshi et al. 2020, arXiv 1907.10529)

Of what is chosen 80 % becomes the mask token, 10 % a random token, 10 % stays as it is: token by token, of spans span
by span.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: How the tokens to guess are chosen.
By = Literal["tokens", "words", "spans"]

#: Of a span's length in words: p of its geometric distribution, and the most.
_SPAN_ENDS, _LONGEST_SPAN = 0.2, 10
_MASKED, _RANDOM = 0.8, 0.1


def choose(words: NDArray[np.int64], share: float, by: By, dice: np.random.Generator) -> NDArray[np.int64]:
    """[L] the number of the unit, from 1, with which each token is chosen; 0: it is not.

    `words` [L]: of each token the word that it belongs to, counted from 0; a negative one is never chosen.
    """
    chosen = np.zeros(len(words), dtype=np.int64)
    places = np.flatnonzero(words >= 0)
    if not len(places):
        return chosen
    wanted = max(1, round(share * len(places)))
    if by == "tokens":
        chosen[dice.permutation(places)[:wanted]] = np.arange(1, wanted + 1)
        return chosen
    names, word, sizes = np.unique(words[places], return_inverse=True, return_counts=True)
    groups = _whole_words(sizes, wanted, dice) if by == "words" else _spans(sizes, wanted, dice)
    unit = np.zeros(len(names), dtype=np.int64)
    for number, group in enumerate(groups, 1):
        unit[group] = number
    chosen[places] = unit[word]
    return chosen


def _whole_words(sizes: NDArray[np.int64], wanted: int, dice: np.random.Generator) -> list[NDArray[np.int64]]:
    """Words in random order, those that still have room among `wanted` tokens; one at least."""
    found: list[NDArray[np.int64]] = []
    left = wanted
    order = dice.permutation(len(sizes))
    for word in order:
        if sizes[word] <= left:
            found.append(np.array([word]))
            left -= int(sizes[word])
        if not left:
            break
    return found or [order[sizes[order].argmin()][None]]


def _spans(sizes: NDArray[np.int64], wanted: int, dice: np.random.Generator) -> list[NDArray[np.int64]]:
    """Stretches of words that were not taken yet, until `wanted` tokens are; the last one is cut to fit."""
    free = np.ones(len(sizes), dtype=np.bool_)
    found: list[NDArray[np.int64]] = []
    left = wanted
    while left > 0 and free.any():
        length = min(_LONGEST_SPAN, int(dice.geometric(_SPAN_ENDS)))
        first = int(dice.choice(np.flatnonzero(free)))
        span: list[int] = []
        for word in range(first, min(first + length, len(sizes))):
            if not free[word] or (sizes[word] > left and (span or found)):
                break
            span.append(word)
            left -= int(sizes[word])
        if not span:
            break  # nothing that fits begins here: as near as it gets
        free[span] = False
        found.append(np.array(span))
    return found


def disguise(
    tokens: NDArray[np.int64],
    units: NDArray[np.int64],
    mask: int,
    ordinary: NDArray[np.int64],
    dice: np.random.Generator,
    *,
    together: bool,
) -> NDArray[np.int64]:
    """[L] what is seen of `tokens` [L], of which those with a number in `units` are to be guessed.

    `ordinary`: the tokens that random ones are drawn from. `together`: all tokens of a unit fare alike.
    """
    places = np.flatnonzero(units)
    fate = dice.random(int(units.max()) + 1 if together else len(places))
    fate = fate[units[places]] if together else fate
    seen = tokens.copy()
    seen[places[fate < _MASKED]] = mask
    random = places[(fate >= _MASKED) & (fate < _MASKED + _RANDOM)]
    seen[random] = dice.choice(ordinary, len(random))
    return seen
