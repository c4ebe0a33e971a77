"""`tutti dashboard`: its door, its key, and its pages, from the start to the last one that is closed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from tutti.core.address import bracketed
from tutti.core.errors import ConfigError, RunError
from tutti.observe.dashboard.keys import key_in, memory, with_keys
from tutti.observe.dashboard.service import ServicePage
from tutti.web.door import Door

#: Where the key is looked for, that visitors from other machines need.
KEY_VARIABLE = "TUTTI_DASHBOARD_KEY"
_READ_SECONDS = 20.0


def _print(line: str) -> None:
    print(line, flush=True)


def dashboard(
    directories: Sequence[Path] = (Path("runs"),),
    *,
    services: Sequence[str] = (),
    key_variables: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8080,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    insecure: bool = False,
    say: Callable[[str], None] = _print,
) -> None:
    """Show the runs in `directories` and `services` (addresses of `tutti serve`) in a browser, until told to stop by
    SIGTERM or Ctrl-C. It only reads. `key_variables`: of the environment, which hold the keys of the services; one for
    each, or one for all. Visitors from other machines need the key of TUTTI_DASHBOARD_KEY, or a new one, which is
    printed.

    Raises:
        TuttiError: something that is named is not there, or the address cannot be had.
    """
    door = Door(host, port, tls_certificate, tls_key, insecure)
    asked = with_keys(services, key_variables)
    try:
        import prometheus_client  # noqa: F401

        from tutti.observe.dashboard.app import Dashboard
        from tutti.web.server import run_server
    except ImportError as error:
        raise ConfigError(
            f"`tutti dashboard` needs the package {error.name}", "install it: pip install 'tutti[serve]'"
        ) from error
    for directory in directories:
        if directory.exists() and not directory.is_dir():
            raise RunError(f"{directory} is no directory", "name one that holds runs, or a run")
    pages = [ServicePage(url, key_in(variable), memory()) for url, variable in asked]
    listener = door.open()
    try:
        key = os.environ.get(KEY_VARIABLE) or None
        if key is None and not door.is_loopback:
            key = secrets.token_urlsafe(24)
        shown_runs = Dashboard(list(directories), pages, key)
        host, port = listener.getsockname()[:2]
        shown = "localhost" if door.is_loopback and host == "127.0.0.1" else bracketed(host)
        say(f"dashboard at {door.scheme}://{shown}:{port}/{f'?key={key}' if key else ''}; Ctrl-C ends it")
        for page in pages:
            page.start()
        run_server(
            shown_runs.app(),
            listener,
            door.certificate,
            door.private_key,
            _READ_SECONDS,
            on_end=shown_runs.end,
        )
    finally:
        listener.close()
        for page in pages:
            page.stop()
