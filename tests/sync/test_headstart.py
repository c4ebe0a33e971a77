"""A step that is begun again while its members still meet."""

from __future__ import annotations

import os
import socket
import threading

import pytest
import torch.distributed as dist

from tutti.sync.group import Group
from tutti.sync.headstart import HeadStart, WrongGuess
from tutti.sync.shares import Shares
from tutti.sync.transport import PeerLost


def test_what_was_guessed_right_goes_on_when_the_meeting_stands() -> None:
    may_end = threading.Event()
    asked: list[bool] = []

    def is_right() -> bool:
        asked.append(may_end.is_set())
        return True

    head_start = HeadStart(may_end.wait, is_right)
    threading.Timer(0.1, may_end.set).start()
    head_start.check()
    head_start.check()  # before every bucket
    head_start.end()
    assert asked == [True] and head_start.waited_seconds > 0


def test_what_was_guessed_wrong_is_not_exchanged() -> None:
    head_start = HeadStart(lambda: None, lambda: False)
    for _ in range(2):
        with pytest.raises(WrongGuess):
            head_start.check()
    head_start.end()


@pytest.mark.parametrize(
    ("error", "is_told"), [(PeerLost("again"), False), (OSError("the store is gone"), True)]
)
def test_a_meeting_that_failed_is_told(error: Exception, is_told: bool) -> None:
    def meet() -> None:
        raise error

    head_start = HeadStart(meet, lambda: True)
    with pytest.raises(type(error)):
        head_start.check()
    if is_told:
        with pytest.raises(type(error)):
            head_start.end()
    else:
        head_start.end()


def test_shares_after_a_loss_are_those_that_the_survivors_will_begin_with() -> None:
    shares = Shares(measured=True)
    for _ in range(9):
        for member, seconds in ((0, 1.0), (1, 2.0), (2, 1.1234567), (3, 4.0)):
            shares.note(member, 12, seconds)
    foreseen = shares.after_loss(48, [0, 2, 3])
    shares.begin({member: round(shares.rate(member) * 1000) / 1000 for member in (0, 2, 3)})
    assert shares.counts(48, [0, 2, 3]) == foreseen != [16, 16, 16]
    assert sum(foreseen) == 48


def test_severing_spares_whoever_got_the_number_of_a_socket_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the list of sockets and the shutdown, a number may have gone to the next group's listener:
    gloo ends the process when that is shut down."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    group = Group(store, "alone", 0, 1, "localhost")
    with (
        socket.create_server(("localhost", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
    ):
        theirs, _ = listener.accept()
        group._ports = {listener.getsockname()[1]}
        real = os.dup
        # What was `theirs` when sockets were listed is the listener by the time it is shut down.
        monkeypatch.setattr(os, "dup", lambda fd: real(listener.fileno() if fd == theirs.fileno() else fd))
        group.sever()
        assert ours.recv(1) == b""  # its own connection was severed
        with socket.create_connection(listener.getsockname()) as again:
            listener.settimeout(2)
            accepted, _ = listener.accept()  # and who listens still does
            accepted.close()
            assert again.getpeername() == listener.getsockname()
        theirs.close()


class LateWork:
    """Work that ends in the moment in which a slice of waiting for it has been given up. `error`: how it ends."""

    def __init__(self, error: str | None) -> None:
        self.error = error
        self.done = False

    def wait(self, slice_: object = None) -> None:
        if not self.done:
            self.done = True
            raise RuntimeError("Operation timed out!")
        if self.error is not None:
            raise RuntimeError(self.error)

    def is_completed(self) -> bool:
        return self.done


def test_work_that_ends_as_a_slice_of_waiting_does_has_not_failed() -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    group = Group(store, "alone", 0, 1, "localhost")
    group._until_done(LateWork(None))()
    with pytest.raises(RuntimeError, match="Connection closed"):
        group._until_done(LateWork("Connection closed by peer"))()
