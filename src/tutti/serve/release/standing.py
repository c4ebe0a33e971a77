"""From what was done with versions to where each stands now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Deed(BaseModel):
    """One line of the history. `percent`: of a canary, the share of requests; None: the version is to serve everybody.
    `to`: the version that is served instead of one that was rolled back (None: it was a canary)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    time: float
    deed: Literal["deployed", "promoted", "rolled_back"]
    version: int
    percent: float | None = Field(default=None, ge=0, le=100)
    to: int | None = None
    by: str
    why: str = ""


@dataclass
class Standing:
    """Of one version: `since`, `by` and `why` are those of the deed that put it there."""

    state: Literal["serving", "canary", "retired", "rolled back"]
    since: float
    by: str
    why: str = ""


@dataclass
class State:
    """`served`: versions in the order in which one may go back, the one that serves last. `canary`: beside it, for
    `percent` of all requests and for whoever asks for it. `since`: when the last one began to serve."""

    served: list[int] = field(default_factory=list)
    canary: int | None = None
    percent: float = 0.0
    since: float = 0.0
    standings: dict[int, Standing] = field(default_factory=dict)

    @property
    def serving(self) -> int | None:
        """Who gets all other requests."""
        return self.served[-1] if self.served else None

    @property
    def previous(self) -> int | None:
        """What a roll-back goes to."""
        return self.served[-2] if len(self.served) > 1 else None


def state_after(deeds: Iterable[Deed]) -> State:
    """What is so after `deeds`."""
    state = State()
    for deed in deeds:
        if deed.deed == "rolled_back":
            _roll_back(state, deed)
        elif deed.percent is not None:
            _retire(state, state.canary, deed, f"version {deed.version} is the canary now")
            state.canary, state.percent = deed.version, deed.percent
            state.standings[deed.version] = Standing("canary", deed.time, deed.by, deed.why)
        else:
            _serve(state, deed.version, deed)
    return state


def _serve(state: State, version: int, deed: Deed) -> None:
    if version == state.canary:
        state.canary, state.percent = None, 0.0
    _retire(state, state.serving, deed, f"version {version} serves now")
    if version in state.served:
        del state.served[state.served.index(version) :]
    state.served.append(version)
    state.since = deed.time
    state.standings[version] = Standing("serving", deed.time, deed.by, deed.why)


def _roll_back(state: State, deed: Deed) -> None:
    back = Standing("rolled back", deed.time, deed.by, deed.why)
    if deed.to is None:
        state.canary, state.percent = None, 0.0
    else:
        if deed.version in state.served:
            state.served.remove(deed.version)
        _serve(state, deed.to, deed.model_copy(update={"why": f"version {deed.version} was rolled back"}))
    state.standings[deed.version] = back


def _retire(state: State, version: int | None, deed: Deed, why: str) -> None:
    if version is not None:
        state.standings[version] = Standing("retired", deed.time, deed.by, why)
