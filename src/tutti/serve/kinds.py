"""What a service is for, and the routes that go with it; whoever asks for another's is told which there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Kind:
    """`name`: as `/v1/models` says it. `routes`: to which is posted."""

    name: str
    routes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'an' if self.name[0] in 'ae' else 'a'} {self.name}"


#: Why a model said so: of models that give labels to texts or to words.
EXPLAIN = "/v1/explain"

WRITER = Kind("writer", ("/v1/chat/completions", "/v1/completions"))
CLASSIFIER = Kind("classifier", ("/v1/classify", EXPLAIN))
TAGGER = Kind("tagger", ("/v1/extract", EXPLAIN))
EMBEDDER = Kind("embedder", ("/v1/embeddings",))
RECOMMENDER = Kind("recommender", ("/v1/recommend",))
ANSWERER = Kind("answerer", ("/v1/answer",))

KINDS = (WRITER, CLASSIFIER, TAGGER, EMBEDDER, RECOMMENDER, ANSWERER)


class Served(Protocol):
    """What every service says of itself. `made`: when it was started, in seconds since 1970."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def made(self) -> int: ...

    @property
    def problem(self) -> str | None:
        """Why it cannot answer now; None: it can."""
