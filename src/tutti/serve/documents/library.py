"""Passages of documents, found by a question: by its words, and by its vector where a model makes such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutti.serve.asking import Asking
from tutti.serve.documents.folder import read_folder
from tutti.serve.documents.passages import cut
from tutti.serve.documents.search import Words, fuse

#: Of each order so many are fused.
_DEEP = 50


class Hit(NamedTuple):
    """A passage that was found: characters `start` to `end` of a document. `score`: for comparison with other hits of
    the same question alone."""

    document: str
    start: int
    end: int
    passage: str
    score: float


class Library:
    """The documents in `folder`. `embedder`: makes vectors of texts; None: only words are looked for.

    Raises:
        DataError: there are no documents, or one cannot be read.
        ConfigError: a library is missing.
    """

    def __init__(self, folder: Path, embedder: Asking | None, say: Callable[[str], None]) -> None:
        self._documents = read_folder(folder)
        self._passages = cut(self._documents)
        texts = [self._text(number) for number in range(len(self._passages))]
        self._words = Words(texts)
        self._embedder = embedder
        self._vectors: NDArray[np.float32] | None = None
        by = "words (BM25)" if embedder is None else "words (BM25) and vectors"
        say(f"documents: {len(self._documents):,}, in {len(texts):,} passages; searched by {by}")
        if embedder is not None:
            self._vectors = vectors_of(embedder, texts)

    def close(self) -> None:
        """End now."""
        if self._embedder is not None:
            self._embedder.close()

    async def find(self, question: str, count: int) -> list[Hit]:
        """The `count` best passages, the best first; fewer, if fewer have to do with the question.

        Raises:
            Full, Late, Stopped, Failed: there is no vector of the question to be had.
        """
        orders = [self._words.best(question, _DEEP)]
        if self._embedder is not None and self._vectors is not None:
            said = await self._embedder.ask(self._embedder.examples([question]))
            alike = self._vectors @ said.answers[0].astype(np.float32)
            orders.append(np.argsort(-alike, kind="stable")[:_DEEP].tolist())
        return [self._hit(number, score) for number, score in fuse(orders)[:count]]

    def _text(self, number: int) -> str:
        passage = self._passages[number]
        return self._documents[passage.document].text[passage.start : passage.end]

    def _hit(self, number: int, score: float) -> Hit:
        passage = self._passages[number]
        name = self._documents[passage.document].name
        return Hit(name, passage.start, passage.end, self._text(number), round(score, 6))


def vectors_of(embedder: Asking, texts: list[str]) -> NDArray[np.float32]:
    """[texts, D], each of length 1; computed here, before the engine has anything to do."""
    said = embedder.asker.predict(texts)
    return np.array([one["embedding"] for one in said], dtype=np.float32)
