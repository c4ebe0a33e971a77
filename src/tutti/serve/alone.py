"""`tutti serve` without a gateway: model, engine and door in one process, from the start to the last answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.serve.alerts import check_receivers, told_of
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.logs import redact_logs
from tutti.serve.http import make_app
from tutti.serve.load import load_any
from tutti.serve.make import make_answering, make_service
from tutti.serve.page import with_page
from tutti.serve.settings import Settings
from tutti.serve.welcome import Welcome
from tutti.web.door import Door
from tutti.web.server import run_server


def serve_model(
    place: Path, door: Door, settings: Settings, rules: ServiceConfig, say: Callable[[str], None]
) -> None:
    """Serve the model of `place` until told to stop.

    Raises:
        TuttiError: there is no such model, it cannot be served, or the door cannot be opened.
    """
    with door.open() as listener:  # before minutes are spent on a model
        welcome = Welcome.at(door, listener, rules)
        guard = Guard(welcome.key, rules)
        check_receivers(rules.alerts)
        service = make_service(load_any(place), settings, say)
        try:
            answering = make_answering(service, settings, say)
            app = make_app(service, guard, answering)
            for line in welcome.lines(service.name, *(service if answering is None else answering).trial):
                say(line)
            with told_of(service.name, guard, rules.alerts, say):
                run_server(
                    with_page(app) if door.page else app,
                    listener,
                    door.certificate,
                    door.private_key,
                    rules.limits.read_seconds,
                    with_logs=redact_logs,
                )
        finally:
            service.close()
