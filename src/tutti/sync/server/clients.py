"""Who is connected to a parameter server."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tutti.sync.server.messages import Message
from tutti.sync.server.register import member_name


@dataclass
class Client:
    """A replica's connections and what it said that is not answered, by part."""

    replica: int
    incarnation: int
    routes: dict[int, bytes] = field(default_factory=dict)
    said: dict[int, Message] = field(default_factory=dict)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    #: What each part has, where it is not the weights of the last step: after a codec, or to compensate for delay.
    views: list[Tensor] = field(default_factory=list)
    #: When the first part of what is being said was heard.
    since: float = 0.0
    joined: bool = False

    @property
    def name(self) -> str:
        """As events have it."""
        return member_name(self.replica, self.incarnation)
