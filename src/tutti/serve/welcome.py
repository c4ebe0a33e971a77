"""What somebody who has started a service is told: where it is, which key opens it, how to try it."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass

from tutti.config import ServiceConfig
from tutti.core.address import bracketed
from tutti.serve.page.page import PAGE
from tutti.web.door import Door

#: Where the key is looked for.
KEY_VARIABLE = "TUTTI_API_KEY"


@dataclass(frozen=True)
class Welcome:
    """`key`: the only one, where `keys` names no file of them; `is_new`: it was made for this time.
    `page`: there is one to try the model with."""

    url: str
    key: str
    is_new: bool
    keys: str | None
    page: bool

    @classmethod
    def at(cls, door: Door, listener: socket.socket, rules: ServiceConfig) -> Welcome:
        """Of a service that listens at `listener`."""
        given = os.environ.get(KEY_VARIABLE)
        key = given or f"sk-tutti-{secrets.token_urlsafe(24)}"
        host, port = listener.getsockname()[:2]
        return cls(f"{door.scheme}://{bracketed(host)}:{port}", key, not given, rules.keys, door.page)

    def lines(self, name: str, route: str, asked: str) -> list[str]:
        """Of the model `name`. `asked`: what might be sent to `route` beside it, as JSON has it."""
        shown = "$KEY" if self.keys else self.key if self.is_new else f"${KEY_VARIABLE}"
        lines = [f"serving {name} at {self.url}/v1; Ctrl-C ends it"]
        if self.keys is not None:
            make = f"tutti keys add NAME --scope SCOPE --file {self.keys}"
            lines.append(f"keys: those in {self.keys} ({make} makes one)")
        elif self.is_new:
            lines.append(f"key, for this time: {self.key} (set {KEY_VARIABLE} to choose one)")
        own = f"#{self.key}" if self.is_new and self.keys is None else ""
        page = [f"or in a browser: {self.url}{PAGE}{own}"] if self.page else []
        return [
            *lines,
            "try it:",
            f'  curl {self.url}{route} -H "Authorization: Bearer {shown}" \\',
            f"    -H 'Content-Type: application/json' -d '{{\"model\": \"{name}\", {asked}}}'",
            *page,
        ]
