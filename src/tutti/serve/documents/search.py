"""Searching by words, and putting two orders into one.

BM25 (Robertson and Zaragoza 2009) is computed by the library bm25s. Orders are fused by reciprocal rank: a passage is
worth Σ 1 ÷ (60 + rank) over the orders in which it stands (Cormack, Clarke and Büttcher 2009), which needs no scores
that could be compared.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tutti.core.errors import ConfigError

#: Letters and digits that belong together; signs of writings that put no space between words stand alone.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
_CONSTANT = 60


def words_of(text: str) -> list[str]:
    """What is looked for of `text`."""
    return [word.lower() for word in _WORD.findall(text)]


class Words:
    """An index of `texts` by their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ConfigError(
                f"documents are searched with the package {error.name}",
                "install it: pip install 'tutti[serve]'",
            ) from error
        self._count = len(texts)
        self._index: Any = bm25s.BM25()  # type: ignore[no-untyped-call]
        self._index.index([words_of(text) or [""] for text in texts], show_progress=False)

    def best(self, query: str, count: int) -> list[int]:
        """Numbers of at most `count` texts that share a word with `query`, the best first."""
        known = [word for word in words_of(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        order = np.argsort(-scores, kind="stable")[: min(count, self._count)]
        return [int(number) for number in order if scores[number] > 0]


def fuse(orders: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """One order of all that stand in `orders`, the best first, and what each is worth."""
    worth: dict[int, float] = defaultdict(float)
    for order in orders:
        for rank, number in enumerate(order, 1):
            worth[number] += 1 / (_CONSTANT + rank)
    return sorted(worth.items(), key=lambda one: (-one[1], one[0]))
