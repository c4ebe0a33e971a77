"""Messages reach those who know the secret, and nobody else, over real sockets."""

from __future__ import annotations

import contextlib
import socket

import zmq

from tutti.sync.channel import caller, listener, new_secret, proof, proves

WAIT_MS = 1000


def answered(secret: bytes, theirs: bytes | None) -> bool:
    """Whether a request that is sealed with `theirs` (None: plain) reaches a listener of `secret`."""
    with zmq.Context() as context:
        server = listener(context, zmq.REP, secret)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        client = context.socket(zmq.REQ) if theirs is None else caller(context, zmq.REQ, theirs)
        client.linger = 0
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(b"hello")
        heard = bool(server.poll(WAIT_MS))
        if heard:
            assert server.recv() == b"hello"
            server.send(b"welcome")
            assert client.recv() == b"welcome"
        client.close()
        server.close()
        return heard


def test_whoever_knows_the_secret_is_heard() -> None:
    secret = new_secret()
    assert answered(secret, secret)


def test_a_stranger_is_not_heard() -> None:
    assert not answered(new_secret(), new_secret())
    assert not answered(new_secret(), None)


def test_a_proof_holds_for_its_claim_and_secret_alone() -> None:
    secret = new_secret()
    given = proof(secret, "replica-1")
    assert proves(secret, "replica-1", given)
    assert not proves(secret, "replica-2", given)
    assert not proves(new_secret(), "replica-1", given)


def test_a_stranger_cannot_fill_memory() -> None:
    """Frames are kept before anybody has said who he is: one that is too large ends the connection."""
    with zmq.Context() as context:
        server = listener(context, zmq.REP, new_secret())
        port = server.bind_to_random_port("tcp://127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            # ZMTP 3.1: signature, version, mechanism, whether it is a server, filler; then a long command.
            stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32))
            stranger.sendall(b"\x06" + (1 << 30).to_bytes(8, "big"))
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := stranger.recv(1000):
                    heard += piece
        assert len(heard) <= 64  # its greeting, and then the end
        server.close()
