"""The parameters of one part as a packet: whole, or as a codec writes them.

Each parameter is coded by itself, so that a parameter which several parts hold whole (norms under tensor parallelism)
is rounded alike for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutti.core import TrainingError
from tutti.sync.codecs import HEADER_BYTES, Codec, Floats, NotFinite, Sealer, unseal
from tutti.sync.codecs.codec import as_bytes, from_bytes
from tutti.sync.server.messages import as_tensor


class Wire:
    """Between flat fp32 vectors and packets. `names`, `sizes`: the parameters, one after the other in the vector."""

    def __init__(self, names: Sequence[str], sizes: Sequence[int], codec: Codec, *, squeeze: bool) -> None:
        self.count = sum(sizes)
        self._names, self._sizes, self._codec = list(names), list(sizes), codec
        self._sealer, self._plain = Sealer(squeeze=squeeze), Sealer(squeeze=False)

    @property
    def exact(self) -> bool:
        """Whether nothing is lost."""
        return self._codec.name == "fp32"

    @property
    def packet_bytes(self) -> int:
        """What `encode` makes, before zstd."""
        return HEADER_BYTES + self._payload_bytes

    @property
    def whole_bytes(self) -> int:
        """What `whole` makes."""
        return HEADER_BYTES + 4 * self.count

    def whole(self, flat: Tensor) -> Tensor:
        """The packet that holds every bit of `flat`."""
        return self._plain.seal(as_bytes(flat))

    def read_whole(self, packet: bytes) -> Tensor:
        """What `whole` was given. Raises Corrupt."""
        return from_bytes(unseal(as_tensor(packet), 4 * self.count), torch.float32)

    def encode(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The packet of `flat` as the codec writes it, and what will be read there. Raises TrainingError."""
        pieces = torch.split(flat, self._sizes)
        payloads, read = [], []
        for name, piece in zip(self._names, pieces, strict=True):
            try:
                payload = self._codec.encode(piece)
            except NotFinite as error:
                raise TrainingError(
                    f"{error} in what {name} sends: codec {self._codec.name} cannot write it",
                    "lower train.learning_rate, or see what made it with sync.codec=fp32",
                ) from error
            payloads.append(payload)
            read.append(piece if self.exact else self._codec.decode(payload, len(piece)))
        return self._sealer.seal(torch.cat(payloads)), torch.cat(read)

    def decode(self, packet: bytes) -> Tensor:
        """What was written by `encode`, to within what the codec loses. Raises Corrupt."""
        payload = unseal(as_tensor(packet), self._payload_bytes)
        lengths = [self._codec.payload_bytes(size) for size in self._sizes]
        pieces = zip(torch.split(payload, lengths), self._sizes, strict=True)
        return torch.cat([self._codec.decode(piece, size) for piece, size in pieces])

    @property
    def _payload_bytes(self) -> int:
        return sum(self._codec.payload_bytes(size) for size in self._sizes)


def has_debts(codec: Codec) -> bool:
    """Whether what the codec loses is sent later."""
    return not isinstance(codec, Floats)
