"""What a `run_started` event means for the steps around it."""

from __future__ import annotations

from tutti.observe.tail import Event


def made_together(start: Event) -> bool:
    """Whether replicas make every step together, so that whoever leads speaks for all."""
    return str(start.get("policy", "allreduce")) == "allreduce"


def restarted_alone(start: Event) -> bool:
    """Whether only the replica that wrote this was restarted, while others may have gone on."""
    elastic = start.get("transport", "static" if made_together(start) else "elastic") == "elastic"
    return elastic and bool(start.get("attempt"))
