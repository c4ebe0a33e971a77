"""A payload on its way: with its length and checksum, perhaps compressed further.

    bytes 0-3   crc32 of everything after it      4-7   length of the body      8   1: zstd      9-15   0

A packet that does not match its checksum raises `Corrupt`; nothing of it is used. zstd is dropped for a stream of
payloads once it does not make them smaller, and tried again later: error-feedback codecs leave little to squeeze, but
gradients that are mostly zeros a lot.
"""

from __future__ import annotations

import struct
import zlib

import torch
import zstandard
from torch import Tensor

HEADER_BYTES = 16
#: Worth it: at least so much smaller. Tried again after so many packets.
_WORTH, _TRY_AGAIN = 0.98, 64


class Corrupt(Exception):
    """A packet is not what was sent."""


class Sealer:
    """Packs payloads; `squeeze`: with zstd, while that shrinks them."""

    def __init__(self, *, squeeze: bool) -> None:
        self._squeeze = squeeze
        self._resting = 0
        self._compressor = zstandard.ZstdCompressor(level=1)

    def seal(self, payload: Tensor) -> Tensor:
        """`payload` uint8 [n] on the CPU as a packet."""
        body, squeezed = payload.numpy().tobytes(), 0
        if self._squeeze and self._resting == 0:
            smaller = self._compressor.compress(body)
            if len(smaller) <= _WORTH * len(body):
                body, squeezed = smaller, 1
            else:
                self._resting = _TRY_AGAIN
        elif self._resting:
            self._resting -= 1
        content = struct.pack("<IB7x", len(body), squeezed) + body
        return _tensor(struct.pack("<I", zlib.crc32(content)) + content)


def unseal(packet: Tensor, payload_bytes: int) -> Tensor:
    """The payload, uint8 [payload_bytes]. Raises Corrupt."""
    content = packet.numpy().tobytes()
    if len(content) < HEADER_BYTES:
        raise Corrupt(f"{len(content)} bytes are less than a header")
    checksum, length, squeezed = struct.unpack("<IIB7x", content[:HEADER_BYTES])
    if length != len(content) - HEADER_BYTES or zlib.crc32(content[4:]) != checksum:
        raise Corrupt(f"{len(content)} bytes do not match their checksum")
    body = content[HEADER_BYTES:]
    if squeezed:
        body = zstandard.ZstdDecompressor().decompress(body, max_output_size=payload_bytes)
    if len(body) != payload_bytes:
        raise Corrupt(f"a payload of {len(body)} bytes where {payload_bytes} are expected")
    return _tensor(body)


def _tensor(content: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )
