"""`tutti serve`: a model, its engine and its door, from the start to the last answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.core.errors import ConfigError
from tutti.serve.load import load_any
from tutti.serve.make import Settings, make_answering, make_service
from tutti.serve.release import is_registry
from tutti.web.door import Door


def serve(
    place: Path | str,
    door: Door,
    settings: Settings,
    rules: ServiceConfig,
    say: Callable[[str], None],
    processes: str | None = None,
) -> None:
    """Serve the model of `place`, or what is released there, until told to stop (SIGTERM, Ctrl-C), then answer what was
    begun; a text is the URL of a service elsewhere, which is guarded. `processes`: that compute behind a gateway, such
    as `2` or `2:6` (None: of a model none but this one).

    Raises:
        TuttiError: there is no such model, it cannot be served, or the door cannot be opened.
    """
    try:
        from tutti.serve.alerts import check_receivers, told_of
        from tutti.serve.gateway.run import serve_elsewhere, serve_gateway
        from tutti.serve.gateway.scale import Bounds
        from tutti.serve.guard.layers import Guard
        from tutti.serve.guard.logs import redact_logs
        from tutti.serve.http import make_app
        from tutti.serve.page import with_page
        from tutti.serve.welcome import Welcome
        from tutti.web.server import run_server
    except ImportError as error:
        raise ConfigError(
            f"`tutti serve` needs the package {error.name}", "install it: pip install 'tutti[serve]'"
        ) from error
    if isinstance(place, str):
        if processes is not None or settings != Settings(most_texts=settings.most_texts):
            raise ConfigError(
                f"{place} computes elsewhere: what a model is computed with cannot be chosen here",
                "leave out --processes, --name and what belongs to the model and its engine",
            )
        serve_elsewhere(place, door, rules, say)
        return
    if processes is not None or is_registry(place):
        serve_gateway(place, door, settings, rules, Bounds.read(processes or "1"), say)
        return
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
