"""The centre's weights on their way: whole, or as what is missing in what a replica has."""

from __future__ import annotations

from collections.abc import Sequence

import safetensors.torch
from torch import Tensor

from tutti.sync.server.centre import Centre, Spec
from tutti.sync.server.clients import Client
from tutti.sync.server.rules import Rules
from tutti.sync.server.wire import Wire


class Weights:
    """`centre` in packets, by `rules`; `specs`: of each part of a replica."""

    def __init__(self, rules: Rules, specs: Sequence[Spec]) -> None:
        self.centre = Centre(
            list(specs), rules.make_stepper, clip=rules.clip, compensation=rules.compensation
        )
        self._wires = [Wire(s.names, s.sizes, rules.codec, squeeze=rules.squeeze) for s in specs]
        self._is_exact = rules.codec.name == "fp32"
        #: What its codec loses is sent later, because a reply tells what is missing in what the replica has.
        self.keeps_views = not self._is_exact or (rules.compensation > 0 and rules.staleness != 0)

    def decode(self, part: int, payload: bytes) -> Tensor:
        """A gradient. Raises Corrupt where it did not arrive whole."""
        return self._wires[part].decode(payload)

    def goes_whole(self, client: Client) -> bool:
        """Whether it gets all that there is, not what it lacks."""
        return self._is_exact or not client.views

    def packet_for(self, client: Client, part: int, *, whole: bool) -> Tensor:
        """What it is sent, and from then on has."""
        flat, wire = self.centre.pieces[part].flat, self._wires[part]
        if whole:
            if self.keeps_views:
                client.views = client.views if part > 0 else []
                client.views.append(flat.clone())
            return wire.whole(flat)
        packet, read = wire.encode(flat - client.views[part])
        client.views[part] += read
        return packet

    def state_for(self, client: Client, part: int) -> bytes:
        """Everything as it is now; it has the weights afterwards."""
        piece = self.centre.pieces[part]
        if self.keeps_views:
            client.views[part].copy_(piece.flat)
        return safetensors.torch.save({n: t.detach().clone() for n, t in piece.state().items()})
