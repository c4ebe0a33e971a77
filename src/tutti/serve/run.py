"""`tutti serve`: a model, its engine and its door, from the start to the last answer."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.core.address import bracketed
from tutti.core.errors import ConfigError
from tutti.serve.answering import Answering
from tutti.serve.asking import Asking
from tutti.serve.load import load_any
from tutti.serve.make import Settings, make_answering, make_service
from tutti.serve.service import Service
from tutti.web.door import Door

#: Where the key is looked for.
KEY_VARIABLE = "TUTTI_API_KEY"


def serve(
    place: Path,
    door: Door,
    settings: Settings,
    rules: ServiceConfig,
    say: Callable[[str], None],
) -> None:
    """Serve the model of `place` until told to stop (SIGTERM, Ctrl-C), then answer what was begun.

    Raises:
        TuttiError: there is no such model, it cannot be served, or the door cannot be opened.
    """
    try:
        from tutti.serve.alerts import check_receivers, told_of
        from tutti.serve.guard.layers import Guard
        from tutti.serve.guard.logs import redact_logs
        from tutti.serve.http import make_app
        from tutti.serve.page import PAGE, with_page
        from tutti.web.server import run_server
    except ImportError as error:
        raise ConfigError(
            f"`tutti serve` needs the package {error.name}", "install it: pip install 'tutti[serve]'"
        ) from error
    listener = door.open()  # before minutes are spent on a model
    try:
        given = os.environ.get(KEY_VARIABLE)
        key = given or f"sk-tutti-{secrets.token_urlsafe(24)}"
        guard = Guard(key, rules)
        check_receivers(rules.alerts)
        service = make_service(load_any(place), settings, say)
        try:
            answering = make_answering(service, settings, say)
            app = make_app(service, guard, answering)
            if door.page:
                app = with_page(app)
            host, port = listener.getsockname()[:2]
            url = f"{door.scheme}://{bracketed(host)}:{port}"
            for line in _welcome(service, answering, url, key, given is None, rules.keys):
                say(line)
            if door.page:
                own = f"#{key}" if given is None and rules.keys is None else ""
                say(f"or in a browser: {url}{PAGE}{own}")
            read_seconds = rules.limits.read_seconds
            with told_of(service.name, guard, rules.alerts, say):
                run_server(
                    app, listener, door.certificate, door.private_key, read_seconds, with_logs=redact_logs
                )
        finally:
            service.close()
    finally:
        listener.close()


def _welcome(
    service: Service | Asking,
    answering: Answering | None,
    url: str,
    key: str,
    is_new: bool,
    keys: str | None,
) -> list[str]:
    route, asked = (service if answering is None else answering).trial
    shown = "$KEY" if keys else key if is_new else f"${KEY_VARIABLE}"
    lines = [f"serving {service.name} at {url}/v1; Ctrl-C ends it"]
    if keys is not None:
        lines.append(f"keys: those in {keys} (tutti keys add NAME --scope SCOPE --file {keys} makes one)")
    elif is_new:
        lines.append(f"key, for this time: {key} (set {KEY_VARIABLE} to choose one)")
    return [
        *lines,
        "try it:",
        f'  curl {url}{route} -H "Authorization: Bearer {shown}" \\',
        f"    -H 'Content-Type: application/json' -d '{{\"model\": \"{service.name}\", {asked}}}'",
    ]
