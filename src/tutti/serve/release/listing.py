"""`tutti releases`: every version with its standing and what it came from, and what can be done next."""

from __future__ import annotations

from typing import Any

from tutti.core.errors import TuttiError
from tutti.serve.release.registry import Registry


def listing(registry: Registry) -> dict[str, Any]:
    """All that is known.

    Raises:
        RunError: the history cannot be read.
    """
    deeds, state = registry.deeds, registry.state
    versions = []
    for number, standing in sorted(state.standings.items()):
        line: dict[str, Any] = {"version": number, "state": standing.state}
        if number == state.canary:
            line["percent"] = state.percent
        line |= {"since": standing.since, "by": standing.by, "why": standing.why}
        try:
            version = registry.version(number)
        except TuttiError as error:
            versions.append(line | {"problem": error.problem})
            continue
        line |= {"model": version.place, **version.lineage.model_dump(), "weights": version.weights}
        versions.append(line | {"deployed": version.deployed, "note": version.note})
    return {
        "directory": str(registry.directory),
        "serving": state.serving,
        "canary": state.canary,
        "percent": state.percent if state.canary is not None else None,
        "versions": versions,
        "history": [deed.model_dump(exclude_none=True) for deed in deeds],
        "next": _next(registry),
    }


def _next(registry: Registry) -> list[str]:
    """What somebody may want to do."""
    state, where = registry.state, registry.directory
    if state.serving is None:
        return [f"tutti deploy RUN --to {where}"]
    found = [f"tutti serve {where}"]
    if state.canary is not None:
        found += [f"tutti deploy --promote --to {where}", f"tutti rollback {where}"]
    else:
        found.append(f"tutti deploy RUN --to {where} --canary 10")
        if state.previous is not None:
            found.append(f"tutti rollback {where}")
    return found
