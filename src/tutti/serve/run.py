"""`tutti serve`: a model, its engine and its door, from the start to the last answer."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tutti.config import ServiceConfig
from tutti.core.address import bracketed
from tutti.core.errors import ConfigError, LaunchError
from tutti.serve.answering import Answering
from tutti.serve.asking import Asking
from tutti.serve.load import load_any
from tutti.serve.make import Settings, make_answering, make_service
from tutti.serve.service import Service

#: Where the key is looked for.
KEY_VARIABLE = "TUTTI_API_KEY"


@dataclass(frozen=True)
class Door:
    """Where the service listens. `certificate`, `private_key`: of TLS; `insecure`: others may come without.
    `with_page`: whether there is a page to try the model with; None: where only this machine can come."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    with_page: bool | None = None

    def open(self) -> socket.socket:
        """A listening socket.

        Raises:
            ConfigError: keys would travel in the clear, or a file is missing.
            LaunchError: the address cannot be had.
        """
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("--tls-certificate and --tls-key belong together", "give both, or neither")
        for path in (self.certificate, self.private_key):
            if path is not None and not path.is_file():
                raise ConfigError(
                    f"there is no file {path}", "give the PEM files of the certificate and its key"
                )
        if not self.is_loopback and self.certificate is None and not self.insecure:
            raise ConfigError(
                f"{self.host} is for other machines, and their keys and texts would travel in the clear",
                "give --tls-certificate and --tls-key; or --insecure where something before it has TLS",
            )
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=2048)
        except OSError as error:
            raise LaunchError(
                f"cannot listen at {bracketed(self.host)}:{self.port}: {error.strerror}",
                "choose another --port or --host",
            ) from error

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can come."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def page(self) -> bool:
        """Whether there is a page."""
        return self.is_loopback if self.with_page is None else self.with_page

    @property
    def scheme(self) -> str:
        """Of its URL."""
        return "http" if self.certificate is None else "https"


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
        from tutti.serve.guard.layers import Guard
        from tutti.serve.http import make_app, run_server
        from tutti.serve.page import PAGE, with_page
    except ImportError as error:
        raise ConfigError(
            f"`tutti serve` needs the package {error.name}", "install it: pip install 'tutti[serve]'"
        ) from error
    listener = door.open()  # before minutes are spent on a model
    try:
        given = os.environ.get(KEY_VARIABLE)
        key = given or f"sk-tutti-{secrets.token_urlsafe(24)}"
        guard = Guard(key, rules)
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
            run_server(app, listener, door.certificate, door.private_key, read_seconds)
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
