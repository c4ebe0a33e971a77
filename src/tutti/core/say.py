"""How whoever starts something is told what goes on."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Say nothing."""


def printer(console: bool, label: str = "") -> Say:
    """What says what is being done: lines that begin with `label`, or nothing."""
    return (lambda message: print(f"{label}{message}", flush=True)) if console else silent
