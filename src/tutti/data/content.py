"""What names a text: 128 bits of BLAKE2b of its UTF-8, as two numbers, which a row of an array can hold."""

from __future__ import annotations

import hashlib

Digest = hashlib.blake2b
Hash = tuple[int, int]


def start_digest(data: bytes = b"") -> Digest:
    """A digest of `data` and what it is updated with."""
    return hashlib.blake2b(data, digest_size=16)


def halves(digest: Digest) -> Hash:
    """The two numbers."""
    raw = digest.digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
