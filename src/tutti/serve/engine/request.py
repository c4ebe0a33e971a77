"""What an engine is asked for, and what it answers, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tutti.serve.engine.grammar import Grammar

#: Why a text ended: the model, a stop text or its grammar said so, there was no more room, the asker went away, time
#: was up, the grammar could not be followed any further, the engine ended.
Reason = Literal["stop", "length", "cancelled", "timeout", "grammar", "error"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0: the likeliest; `top_p`: among the likeliest that make up so much;
    `top_k`: among so many (0: all). `seed`: of this text alone. `logprobs`: so many likeliest are told with each token
    (None: nothing is)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Likely:
    """A token that was drawn, or might have been, with the logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Piece:
    """More text. `tokens`: drawn since the last piece; `likely`: of each, itself first."""

    text: str
    tokens: tuple[int, ...]
    likely: tuple[tuple[Likely, ...], ...] = ()


@dataclass(frozen=True)
class End:
    """No more comes. `cached_tokens`: of the prompt, that another request had already paid for. `problem`: of an
    error, for whoever runs the service."""

    reason: Reason
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int = 0
    problem: str | None = None


Deliver = Callable[[Piece | End], None]


@dataclass
class Request:
    """`prompt`: tokens, at least one. `stop`: texts that end it, and are not part of it. `grammar`: of this text alone,
    what it has to follow. `owner`: whose it is; nothing that was read for one is used for another. `deliver` is called
    from the engine's thread, and must not wait. `deadline`: by `time.monotonic`."""

    prompt: list[int]
    new_tokens: int
    deliver: Deliver
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    deadline: float | None = None
    owner: str = ""
    #: Set by whoever does not want it any more.
    cancelled: bool = False

    def require_room(self, context: int) -> None:
        """Raise ValueError where the prompt is empty, or leaves no room for an answer among `context` tokens."""
        if not self.prompt:
            raise ValueError("a prompt has at least one token")
        if len(self.prompt) >= context:
            raise ValueError(
                f"the prompt has {len(self.prompt)} tokens, and the model sees {context} with its answer"
            )
