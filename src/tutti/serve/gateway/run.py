"""`tutti serve` with a gateway: from the start to the last answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.core.errors import RunError
from tutti.core.hold import held
from tutti.serve.alerts import check_receivers, told_of
from tutti.serve.gateway.elsewhere import Elsewhere
from tutti.serve.gateway.follow import Follower
from tutti.serve.gateway.forward import Forward
from tutti.serve.gateway.gauges import Gauges
from tutti.serve.gateway.scale import Bounds
from tutti.serve.gateway.source import Released, Single, Source
from tutti.serve.gateway.worker import Worker
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.logs import redact_logs
from tutti.serve.guard.metrics import Vitals
from tutti.serve.page import with_page
from tutti.serve.release import Registry, is_registry
from tutti.serve.settings import Settings
from tutti.serve.welcome import Welcome
from tutti.web.door import Door
from tutti.web.server import run_server


def serve_gateway(
    place: Path,
    door: Door,
    settings: Settings,
    rules: ServiceConfig,
    bounds: Bounds,
    say: Callable[[str], None],
) -> None:
    """Serve what is released in `place`, or the model that lies there, by as many workers as `bounds` allow, until told
    to stop (SIGTERM, Ctrl-C); then answer what was begun.

    Raises:
        TuttiError: there is nothing that can be served, another gateway serves it, or the door cannot be opened.
    """
    registry = Registry(place) if is_registry(place) else None
    source: Source = Single(place) if registry is None else Released(registry)
    if source.state().serving is None:
        raise RunError(f"nothing was deployed to {place} yet", f"deploy a run: tutti deploy RUN --to {place}")
    with (
        nullcontext() if registry is None else held(registry.gate, "serving these releases"),
        door.open() as listener,
    ):
        welcome = Welcome.at(door, listener, rules)
        guard = Guard(welcome.key, rules)
        check_receivers(rules.alerts)
        follower = Follower(source, settings, rules, bounds, say)
        fleet = follower.fleet

        async def greet(worker: Worker) -> None:
            route, asked = (await worker.vitals())["trial"]
            for line in welcome.lines(settings.name or source.name, route, asked):
                say(line)

        app = guard.around(
            Forward(fleet), Vitals(lambda: fleet.load, lambda: fleet.problem), Gauges(follower)
        )
        with told_of(settings.name or source.name, guard, rules.alerts, say):
            run_server(
                with_page(app) if door.page else app,
                listener,
                door.certificate,
                door.private_key,
                rules.limits.read_seconds,
                beside=follower.living(greet),
                with_logs=redact_logs,
            )


def serve_elsewhere(url: str, door: Door, rules: ServiceConfig, say: Callable[[str], None]) -> None:
    """Guard the service at `url` until told to stop.

    Raises:
        TuttiError: nobody answers there, or the door cannot be opened.
    """
    with door.open() as listener:
        welcome = Welcome.at(replace(door, with_page=False), listener, rules)
        guard = Guard(welcome.key, rules)
        check_receivers(rules.alerts)
        there = Elsewhere(url)

        def greet(name: str) -> None:
            say(f"what is asked here is computed at {there.url}")
            for line in welcome.lines(
                name, "/v1/chat/completions", '"messages": [{"role": "user", "content": "Hello"}]'
            ):
                say(line)

        app = guard.around(there, Vitals(lambda: (there.in_flight, 0), lambda: there.problem))
        with told_of(url, guard, rules.alerts, say):
            run_server(
                app,
                listener,
                door.certificate,
                door.private_key,
                rules.limits.read_seconds,
                beside=there.living(greet),
                with_logs=redact_logs,
            )
