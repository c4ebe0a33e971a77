"""Addresses of machines, as URLs and people write them."""

from __future__ import annotations

import re

#: Of a URL: a name and a password before the host; what stands behind a question mark, where signatures and tokens go.
_CREDENTIALS, _QUERY = re.compile(r"(?<=://)[^/?#\s]*@"), re.compile(r"(?<=://)(\S*?)\?[^\s#]+")


def bracketed(address: str | int) -> str:
    """As it stands before a port: an IPv6 address in brackets."""
    return f"[{address}]" if ":" in str(address) else str(address)


def is_loopback(host: str) -> bool:
    """Whether only this machine can come to `host`."""
    return host in ("localhost", "::1") or host.startswith("127.")


def is_url(text: str) -> bool:
    """Whether it is the address of a service on the web."""
    return text.startswith(("http://", "https://"))


def without_secrets(text: str) -> str:
    """`text`, of whose URLs only what may be shown is left: no name or password, and `?…` for a query."""
    return _QUERY.sub(r"\1?…", _CREDENTIALS.sub("", text))
