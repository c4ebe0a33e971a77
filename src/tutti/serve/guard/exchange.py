"""What is known of one request, from its first byte to its last: layers fill it in, audit and metrics read it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

#: Between a worker and the guard: how many tokens were read for an answer that does not say so itself.
TOKENS_HEADER = "x-tutti-tokens"
#: And the name of the key that asks: what was read for one key is not used for another.
OWNER_HEADER = "x-tutti-owner"


@dataclass
class Exchange:
    """`id`: as the client is told; `traceparent`: the trace that the client began, as W3C writes it. `key`: the key's
    name. `first_seconds`: until the first piece of a stream left. `prompt`: what was asked, redacted; None: it is not
    to be written down. `whole`: whether its answer came to its end."""

    id: str
    method: str
    route: str
    traceparent: str | None = None
    began: float = field(default_factory=time.time)
    _start: float = field(default_factory=time.perf_counter)
    key: str | None = None
    status: int | None = None
    whole: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0
    first_seconds: float | None = None
    redactions: Counter[str] = field(default_factory=Counter)
    harm: str | None = None
    prompt: Any = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._start


def exchange_of(scope: Scope) -> Exchange:
    """Of the request in `scope`, where `Recorded` has put it."""
    found: Exchange = scope["state"]["exchange"]
    return found
