"""Messages between processes of one run, encrypted, and refused to whoever does not know the run's secret.

ZeroMQ with CURVE (Curve25519): a caller must know the listener's public key to be heard at all, and that key follows
from the run's secret. So nothing but the secret has to be handed out, and a stranger's connection never becomes one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import cache

import zmq
from zmq.utils import z85

#: Bytes of a run's secret.
SECRET_BYTES = 32


def new_secret() -> bytes:
    """A secret that nobody has seen."""
    return secrets.token_bytes(SECRET_BYTES)


def proof(secret: bytes, claim: str) -> str:
    """What only someone who knows the secret can say with `claim` (HMAC-SHA256, the first 128 bits as hex)."""
    return hmac.new(secret, claim.encode(), hashlib.sha256).hexdigest()[:32]


def proves(secret: bytes, claim: str, given: str) -> bool:
    """Whether `given` is the proof of `claim`."""
    return hmac.compare_digest(proof(secret, claim), given)


def listener(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, secret: bytes, *, most_bytes: int | None = 1 << 24
) -> zmq.Socket[bytes]:
    """A socket that is to be bound and hears those who know `secret`; nobody may send a frame of more than `most_bytes`
    (None: any), who may be a stranger: the library keeps frames in memory before it knows."""
    socket = context.socket(kind)
    if most_bytes is not None:
        socket.maxmsgsize = most_bytes
    socket.curve_publickey, socket.curve_secretkey = _keys(secret, "listener")
    socket.curve_server = True
    socket.ipv6 = True
    socket.linger = 0
    return socket


def caller(context: zmq.Context[zmq.Socket[bytes]], kind: int, secret: bytes) -> zmq.Socket[bytes]:
    """A socket that is to be connected to a `listener` of the same secret."""
    socket = context.socket(kind)
    socket.curve_serverkey = _keys(secret, "listener")[0]
    socket.curve_publickey, socket.curve_secretkey = _keys(secret, "caller")
    socket.ipv6 = True
    socket.linger = 0
    return socket


@cache
def _keys(secret: bytes, role: str) -> tuple[bytes, bytes]:
    """Public and secret key of `role`, Z85: any 256 bits are a Curve25519 key, so these are hashed from the secret."""
    private: bytes = z85.encode(hmac.new(secret, f"curve {role}".encode(), hashlib.sha256).digest())
    public: bytes = zmq.curve_public(private)
    return public, private
