"""Exchange over one gloo group that may break, on behalf of a transport that has to know when it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tutti.sync.group import Group
from tutti.sync.transport import ByteMeter, Transport, Wait


class Within(Transport):
    """The members of `group`. `attempt(exchange, begun)`: runs it, and raises PeerLost for what befalls it."""

    def __init__(
        self, group: Group, attempt: Callable[[Callable[[], Any], bool], Any], meter: ByteMeter
    ) -> None:
        super().__init__()
        self._group = group
        self._attempt = attempt
        self.meter = meter

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def start_all_reduce(self, tensor: Tensor) -> Wait:
        self.meter.all_reduce(tensor.nbytes, self.size)
        wait = self._attempt(lambda: self._group.all_reduce(tensor), False)
        return lambda: self._attempt(wait, True)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self.meter.all_gather(tensor.nbytes, self.size)
        parts: list[Tensor] = self._attempt(lambda: self._group.all_gather(tensor), False)
        return parts

    def all_to_all(
        self, outgoing: Sequence[Tensor], incoming: Sequence[int], largest: int | None = None
    ) -> list[Tensor]:
        self.meter.all_to_all(outgoing)
        arrived: list[Tensor] = self._attempt(
            lambda: self._group.all_to_all(outgoing, incoming, largest), False
        )
        return arrived
