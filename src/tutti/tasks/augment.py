"""Other texts that mean nearly the same: some words left out, some neighbours in each other's place.

A pure function of the row and the dice, which follow from (seed, epoch, number of the row): whoever reads a row in an
epoch reads the same.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np

from tutti.tasks.task import Row

#: Columns that have a number for each token; `words` says which word (−1: a special token).
_OF_TOKENS = ("input_ids", "token_type_ids", "words")


def augmented(row: Row, drop: float, swap: float, dice: np.random.Generator) -> Row:
    """`row` with a share `drop` of its words left out (one stays), and a share `swap` changed with the next."""
    runs = [
        (word, [at for at, _ in places])
        for word, places in groupby(enumerate(row["words"]), key=lambda pair: pair[1])
    ]
    words = [number for number, (word, _) in enumerate(runs) if word >= 0]
    kept = dice.random(len(words)) >= drop
    if not kept.any() and len(words):
        kept[dice.integers(len(words))] = True
    gone = {number for number, stays in zip(words, kept, strict=True) if not stays}
    left = [run for number, run in enumerate(runs) if number not in gone]
    turns = dice.random(max(0, len(left) - 1)) < swap
    at = 0
    while at < len(left) - 1:
        if turns[at] and left[at][0] >= 0 and left[at + 1][0] >= 0:
            left[at], left[at + 1] = left[at + 1], left[at]
            at += 1  # a word moves once
        at += 1
    order = [place for _, places in left for place in places]
    return {
        name: [column[place] for place in order] if name in _OF_TOKENS else column
        for name, column in row.items()
    }
