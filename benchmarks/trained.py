"""Runs that results are taken of: trained to their end, or no result."""

from __future__ import annotations

from typing import Any

from tutti import api
from tutti.config import Config


def train_to_the_end(config: Config, *, resume: bool = False) -> dict[str, Any]:
    """Train quietly; returns the content of `report.json`. Where somebody stops the run, the benchmark ends with it:
    figures of half a run would be kept as if they were of a whole one."""
    report = api.train(config, resume=resume, console=False)
    if report["state"] != "finished":
        raise SystemExit(f"{config.name} is {report['state']}; the same command goes on")
    return report
