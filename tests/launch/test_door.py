"""The door of a run: who gets in, what they get, and whose place is free again."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tutti.launch.companion import free_port
from tutti.supervise.door import CHUNK_BYTES, Door, House
from tutti.sync.asking import Line


@dataclass
class Entrance:
    address: str
    key: bytes
    heard: list[tuple[str, dict[str, Any]]]
    door: Door
    received: list[dict[str, Any]]

    def ask(self, verb: str, **fields: Any) -> Any:
        return json.loads(self.frames(verb, **fields)[0])

    def frames(self, verb: str, **fields: Any) -> list[bytes]:
        with closing(Line(self.address, self.key)) as line:
            answer = line.ask([json.dumps({"verb": verb, **fields}).encode()], lambda: 10.0)
        assert answer is not None
        return answer

    def join(self, count: int | None, software: str = "same", cores: int = 4) -> Any:
        return self.ask("join", count=count, cores=cores, machine="m", software=software)


@pytest.fixture
def entrance(tmp_path: Path) -> Iterator[Entrance]:
    (tmp_path / "large").write_bytes(bytes(range(256)) * (CHUNK_BYTES // 256) + b"end")
    port, key, heard = free_port(), secrets.token_bytes(32), list[tuple[str, dict[str, Any]]]()
    house = House({"part/large": tmp_path / "large"}, "same", parts=2)
    received = list[dict[str, Any]]()
    door = Door(
        "127.0.0.1",
        port,
        key,
        [2, 3, 4],
        house,
        lambda kind, **fields: heard.append((kind, fields)),
        received.extend,
    )
    with closing(door):
        yield Entrance(f"tcp://127.0.0.1:{port}", key, heard, door, received)


def test_seats_are_given_out_and_given_back(entrance: Entrance) -> None:
    first, second = entrance.join(2), entrance.join(2)
    assert (first["numbers"], second["numbers"]) == ([2, 3], [4])
    assert first["files"] == {"part/large": CHUNK_BYTES + 3}
    assert "have their place" in entrance.join(None)["refused"]
    entrance.ask("leave", guest=first["guest"])
    again = entrance.join(None, cores=2)  # one replica of two workers
    assert again["numbers"] == [2] and again["incarnation"] > second["incarnation"] > first["incarnation"]
    assert not entrance.ask("alive", guest=first["guest"])["known"]
    assert entrance.ask("alive", guest=again["guest"])["known"]
    kinds = [(kind, fields["of_replicas"]) for kind, fields in entrance.heard]
    assert kinds == [("joined", [2, 3]), ("joined", [4]), ("left", [2, 3]), ("joined", [2])]


def test_what_is_to_be_done_comes_in_stages(entrance: Entrance) -> None:
    guest = entrance.join(1)["guest"]
    assert entrance.ask("work", guest=guest, after=0) == {"wait": True}
    entrance.door.give({"measure": True})
    assert entrance.ask("work", guest=guest, after=0) == {"stage": 1, "measure": True}
    assert entrance.ask("work", guest=guest, after=1) == {"wait": True}
    assert entrance.ask("measured", guest=guest, events=[{"kind": "sync_measured"}]) == {}
    assert entrance.received == [{"kind": "sync_measured"}]
    entrance.door.give({"measure": False})
    assert entrance.ask("work", guest=guest, after=1) == {"stage": 2, "measure": False}


def test_other_software_stays_outside(entrance: Entrance) -> None:
    refused = entrance.join(1, software="older")
    assert "same" in refused["refused"] and "older" in refused["refused"]
    assert not entrance.heard


def test_files_come_in_pieces(entrance: Entrance) -> None:
    _, first = entrance.frames("file", name="part/large", offset=0)
    _, rest = entrance.frames("file", name="part/large", offset=len(first))
    assert len(first) == CHUNK_BYTES and rest == b"end"
    assert "refused" in entrance.ask("file", name="../../etc/passwd", offset=0)


def test_who_falls_silent_loses_the_seat(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutti.supervise.door.SILENCE_SECONDS", 1.0)
    guest = entrance.join(3)["guest"]
    for _ in range(8):
        time.sleep(0.2)
        assert entrance.ask("alive", guest=guest)["known"]
    deadline = time.monotonic() + 20
    while len(entrance.heard) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert entrance.heard[1] == ("left", {"of_replicas": [2, 3, 4], "machine": "m", "how": "fell silent"})


def test_a_question_that_was_interrupted_does_not_spoil_the_next(entrance: Entrance) -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    with closing(Line(entrance.address, entrance.key)) as line:
        question = [json.dumps({"verb": "alive", "guest": 0}).encode()]
        with pytest.raises(KeyboardInterrupt):
            line.ask(question, interrupted)
        assert line.ask(question, lambda: 10.0) == [b'{"known": false}']


def test_another_key_hears_nothing(entrance: Entrance) -> None:
    with closing(Line(entrance.address, secrets.token_bytes(32))) as line:
        frames = [
            json.dumps({"verb": "join", "count": 1, "cores": 1, "machine": "m", "software": "same"}).encode()
        ]
        assert line.ask(frames, lambda: 1.0) is None
    assert not entrance.heard
