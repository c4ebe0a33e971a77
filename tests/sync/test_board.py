"""Messages between groups over real sockets: the newest are kept, strangers are not heard, nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import zmq

from tutti.sync.board import Board, Message
from tutti.sync.channel import caller, new_secret
from tutti.sync.postbox import Postbox

SECRET = new_secret()


@pytest.fixture
def board() -> Iterator[Board]:
    with closing(Board(SECRET)) as board:
        yield board


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(postbox: Postbox, messages: int) -> list[Message]:
    found: list[Message] = []

    def enough() -> bool:
        found.extend(postbox.collect())
        return len(found) >= messages

    until(enough)
    return found


def test_the_newest_of_each_author_and_kind_reach_the_other_groups(board: Board) -> None:
    author, beside = Postbox(board.port, SECRET, 0, 0), Postbox(board.port, SECRET, 0, 1)
    for number in range(5):
        author.post("weights", number, 1, lambda number=number: b"w%d" % number)
        author.post("predictions", number, 3, lambda number=number: b"p%d" % number)
    author.close()  # delivers what was waiting
    beside.post("weights", 9, 1, lambda: b"mine")
    late = Postbox(board.port, SECRET, 1, 0)
    found = sorted((m.group, m.rank, m.kind, m.number, m.payload) for m in read(late, 5))
    assert found == [
        (0, 0, "predictions", 2, b"p2"),
        (0, 0, "predictions", 3, b"p3"),
        (0, 0, "predictions", 4, b"p4"),
        (0, 0, "weights", 4, b"w4"),
        (0, 1, "weights", 9, b"mine"),
    ]
    assert author.sent_bytes == 20 and late.received_bytes == 12 and author.lost == 0
    late.post("weights", 1, 1, lambda: b"reply")
    assert [m.payload for m in read(beside, 1)] == [b"reply"], "a group does not read what it wrote itself"
    beside.close()
    late.close()


def test_large_messages_come_in_several_answers(board: Board) -> None:
    author, reader = Postbox(board.port, SECRET, 0, 0), Postbox(board.port, SECRET, 1, 0)
    for number in range(3):
        author.post("weights", number, 3, lambda: bytes(40 << 20))
    assert [m.number for m in read(reader, 3)] == [0, 1, 2]
    author.close()
    reader.close()


def test_a_stranger_is_not_heard(board: Board) -> None:
    with zmq.Context() as context:
        socket = caller(context, zmq.REQ, new_secret())
        socket.connect(f"tcp://127.0.0.1:{board.port}")
        socket.send_multipart([b"get", b'{"group": 0, "after": 0}'])
        assert not socket.poll(500)
        socket.close()


def test_the_board_survives_what_it_does_not_understand(board: Board) -> None:
    with zmq.Context() as context:
        for frames in ([b""], [b"put", b"{"], [b"put", b"{}", b""], [b"get", b'{"group": "x", "after": 0}']):
            socket = caller(context, zmq.REQ, SECRET)
            socket.connect(f"tcp://127.0.0.1:{board.port}")
            socket.send_multipart(frames)
            assert socket.poll(5000) and socket.recv_multipart() == [b"not understood"]
            socket.close()


def test_nobody_waits_for_a_board_that_is_gone() -> None:
    board = Board(SECRET)
    board.close()
    postbox = Postbox(board.port, SECRET, 0, 0)
    began = time.monotonic()
    for number in range(200):
        postbox.post("weights", number, 1, lambda: b"x")
        assert postbox.collect() == []
    assert time.monotonic() - began < 2  # far less than one answer may take
    postbox.close()
    assert postbox.lost > 0 and postbox.sent_bytes == 0
    assert not postbox._thread.is_alive()
