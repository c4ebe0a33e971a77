"""What replicas and server say to each other: a kind, a few JSON values, and perhaps one payload of bytes.

to the server
  join     I am part p of replica r and hold these parameters; my last push was of that lease
  state    here are weights and optimizer to begin with
  push     the gradient of lease l
  waiting  I am still waiting for your answer to that
  fetch    give me weights and optimizer as they are
  leave    I will not come back
from the server
  give     send me the state to begin with
  go       this came of your push; here are weights, and a lease (none: the run is over, or stops)
  again    what you sent has not arrived whole
  join     I do not know you (any more)
  state    weights and optimizer
  patience I have what you sent
  refuse   this cannot be; the reason is for the user
  probe    are you there?
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Message:
    """`payload`: bytes that were sent, or are to be. What goes to the server says who speaks, and gives it a number."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    @property
    def names_its_sender(self) -> bool:
        """Whether it is one that a server can answer."""
        return all(
            isinstance(self.fields.get(key), int) for key in ("replica", "incarnation", "part", "serial")
        )

    @classmethod
    def of(cls, frames: list[bytes]) -> Message | None:
        """What `frames` say; None where they say nothing."""
        try:
            fields = dict(json.loads(frames[0]))
            return cls(fields.pop("kind"), fields, frames[1] if len(frames) > 1 else b"")
        except (ValueError, TypeError, KeyError, IndexError):
            return None


def frames_of(kind: str, payload: bytes | Tensor = b"", **fields: Any) -> list[bytes]:
    """The frames of a message; a payload may be uint8 [n], whose memory is sent as it is."""
    header = json.dumps({"kind": kind} | fields).encode()
    # To ZeroMQ a memory view is as good as bytes, and copies nothing.
    return [header, memoryview(payload.numpy()) if isinstance(payload, Tensor) else payload]  # type: ignore[arg-type,list-item]


def as_tensor(payload: bytes) -> Tensor:
    """uint8 [n]."""
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0).byte()
