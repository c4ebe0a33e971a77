"""What replicas and server say to each other: a kind, a few JSON values, and perhaps one payload of bytes.

to the server
  join     I am part p of replica r and hold these parameters; my last push was of that lease
  state    here are weights and optimizer to begin with
  push     the gradient of lease l
  waiting  I said that, and am still waiting for your answer
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

A payload goes in many frames. Heartbeats pass between frames, and each frame that arrives is a sign of life; behind one
frame of megabytes on a slow link both sides would be silent, and be taken for dead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Bytes. A link of 1 Mbit/s that four replicas share carries it in half a second.
FRAME_BYTES = 1 << 14


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
            return cls(fields.pop("kind"), fields, b"".join(frames[1:]))
        except (ValueError, TypeError, KeyError, IndexError):
            return None


def frames_of(kind: str, payload: bytes | Tensor = b"", **fields: Any) -> list[bytes]:
    """The frames of a message; a payload may be uint8 [n], whose memory is sent as it is."""
    header = json.dumps({"kind": kind} | fields).encode()
    content = memoryview(payload.numpy().data if isinstance(payload, Tensor) else payload)
    # To ZeroMQ a memory view is as good as bytes, and copies nothing.
    return [header, *(content[i : i + FRAME_BYTES] for i in range(0, len(content), FRAME_BYTES))]  # type: ignore[list-item]


def as_tensor(payload: bytes) -> Tensor:
    """uint8 [n]."""
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0).byte()
