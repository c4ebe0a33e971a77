"""`tutti dashboard`: runs and services in a browser, live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIRECTORY]...", help="Each holds runs, or is one; `runs` by default."),
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A service of `tutti serve`, too; may be given again."),
    ] = None,
    key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Variable that holds the service's key, of scope `metrics`; for each service one, or one for all.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; for other machines there is a key, and TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen for other machines without TLS.")
    ] = False,
) -> None:
    """Show runs and services in a browser while they go on."""
    # Without torch: it runs beside those who need the memory.
    from tutti.observe.dashboard.show import dashboard as show

    show(
        directories or [Path("runs")],
        services=service or (),
        key_variables=key_env or (),
        host=host,
        port=port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        insecure=insecure,
    )
