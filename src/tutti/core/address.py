"""Addresses of machines, as URLs and people write them."""

from __future__ import annotations


def bracketed(address: str | int) -> str:
    """As it stands before a port: an IPv6 address in brackets."""
    return f"[{address}]" if ":" in str(address) else str(address)


def is_url(text: str) -> bool:
    """Whether it is the address of a service on the web."""
    return text.startswith(("http://", "https://"))
