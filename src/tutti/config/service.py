"""What a service can be told: who may ask, how much, what is hidden, what is refused, and what is written down."""

from __future__ import annotations

from pydantic import Field

from tutti.config.fields import Positive, Section


class LimitsConfig(Section):
    """How much one request may take, and how many there may be. What is over is refused before it costs anything."""

    body_bytes: Positive = Field(
        default=1_000_000, description="Of a request's body; larger ones are told 413 before they are read."
    )
    requests: Positive = Field(
        default=256,
        description="Requests that are in the house at the same time; one more is told 429 before its body is read.",
    )
    texts: Positive | None = Field(
        default=None,
        description="Texts that one request may ask for (prompts × `n`); `null`: as many as slots.",
    )
    new_tokens: Positive | None = Field(
        default=None, description="Tokens of one answer at most; `null`: what the model has room for."
    )
    read_seconds: Positive = Field(
        default=20, description="For a request's headers, and again for its body, to arrive."
    )
    request_seconds: Positive = Field(default=600, description="For a whole answer; then it is told 504.")


class ServiceConfig(Section):
    """What `tutti serve` goes by."""

    keys: str | None = Field(
        default=None,
        description="File that `tutti keys` looks after; `null`: the key in TUTTI_API_KEY, or one for this time.",
    )
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
