"""Where a service listens, and that keys do not travel in the clear."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from tutti.core.address import bracketed, is_loopback
from tutti.core.errors import ConfigError, LaunchError


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
        return is_loopback(self.host)

    @property
    def page(self) -> bool:
        """Whether there is a page."""
        return self.is_loopback if self.with_page is None else self.with_page

    @property
    def scheme(self) -> str:
        """Of its URL."""
        return "http" if self.certificate is None else "https"
