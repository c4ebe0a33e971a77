"""The keys with which services are asked, and where what they said is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tutti.core.errors import ConfigError


def memory() -> Path:
    """Where what services said is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tutti" / "dashboard"


def with_keys(services: Sequence[str], variables: Sequence[str]) -> list[tuple[str, str | None]]:
    """Each address with the variable of its key; one variable may be for all.

    Raises:
        ConfigError: there are more or fewer.
    """
    if len(variables) not in (0, 1, len(services)):
        raise ConfigError(
            f"there are {len(services)} services and {len(variables)} keys",
            "give --key-env once for all services, or once for each",
        )
    if len(variables) == len(services):
        return list(zip(services, variables, strict=True))
    return [(service, variables[0] if variables else None) for service in services]


def key_in(variable: str | None) -> str | None:
    """The key that the environment has as `variable`. Raises ConfigError: there is none."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"there is no key in the environment's {variable}", f"set it before: export {variable}=KEY"
        )
    return key
