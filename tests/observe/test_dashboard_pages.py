"""What a browser is sent, and who is sent anything."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.observe.synthetic import Recorder, lively_run
from tutti.core.errors import ConfigError
from tutti.observe.dashboard import app as app_module
from tutti.observe.dashboard.app import Dashboard
from tutti.observe.dashboard.service import ServicePage
from tutti.observe.dashboard.stream import stream

OURS = "http://localhost:8080"


def client(run: Path, key: str | None = None, base: str = OURS) -> TestClient:
    return TestClient(Dashboard([run], [], key).app(), base_url=base, follow_redirects=False)


async def messages(
    dashboard: Dashboard, look: Any, last: str, number: int
) -> list[tuple[str, dict[str, Any]]]:
    """The first messages of a stream: id and parts."""
    found = []
    body: AsyncIterator[bytes] = stream(look, dashboard._session, last, 0.01, lambda: len(found) >= number)
    async for chunk in body:
        fields = dict(line.split(": ", 1) for line in chunk.decode().strip().split("\n") if ": " in line)
        if "data" in fields:
            found.append((fields.get("id", ""), json.loads(fields["data"])["parts"]))
            if len(found) >= number:
                break
    return found


def test_pages_bring_all_they_need_and_nothing_else(tmp_path: Path) -> None:
    asked = client(tmp_path)
    for path in ("/", "/run?name=x", "/service?name=y"):
        page = asked.get(path)
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
        for part in ("onclick", "style=", "http://", "https://", "<script>"):
            assert part not in page.text
    for name, kind in (("dashboard.js", "javascript"), ("charts.js", "javascript"), ("dashboard.css", "css")):
        found = asked.get(f"/static/{name}")
        assert found.status_code == 200 and kind in found.headers["content-type"]
        assert "//cdn" not in found.text and "https://" not in found.text
    assert asked.get("/static/../app.py").status_code == 404
    assert asked.get("/static/app.py").status_code == 404
    assert asked.post("/").status_code == 405


def test_only_this_machine_comes_without_a_key(tmp_path: Path) -> None:
    for name in ("localhost:8080", "127.0.0.1:9", "[::1]:8080", "LOCALHOST"):
        assert client(tmp_path).get("/", headers={"host": name}).status_code == 200
    # A page elsewhere whose name was made to point here comes by that name.
    for name in ("evil.example:8080", "localhost.evil.example", "", "10.0.0.3:8080"):
        assert client(tmp_path).get("/stream", headers={"host": name}).status_code == 403


def test_a_key_opens_it_once_and_is_taken_out_of_the_address(tmp_path: Path) -> None:
    asked = client(tmp_path, "s3cret-key", "https://host.example")
    assert asked.get("/").status_code == 401 and asked.get("/stream").status_code == 401
    assert asked.get("/?key=wrong").status_code == 401
    assert asked.get("/", headers={"authorization": "Bearer s3cret-key"}).status_code == 200
    answer = asked.get("/run?name=a&key=s3cret-key")
    assert (answer.status_code, answer.headers["location"]) == (303, "/run?name=a")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" in cookie
    assert asked.get("/").status_code == 200  # with the cookie
    forger = client(tmp_path, "s3cret-key", "https://host.example")
    assert forger.get("/", headers={"cookie": "tutti_dashboard=forged"}).status_code == 401


def test_after_a_break_only_what_was_missed_is_sent(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "runs" / "a")
    r.started(0)
    now = r.steps(0, range(1, 31))
    dashboard = Dashboard([tmp_path / "runs"], [], None)
    look = dashboard._look_at_run("a")
    ((last, parts),) = asyncio.run(messages(dashboard, look, "", 1))
    assert parts["rows"]["from"] == 0 and len(parts["rows"]["columns"]["step"]) == 30
    assert parts["run"]["name"] == "a"
    r.steps(now, [31, 32])
    dashboard._pages["a"][0]._look_at = 0.0
    ((_, parts),) = asyncio.run(messages(dashboard, look, last, 1))
    assert parts["rows"]["from"] == 30 and parts["rows"]["columns"]["step"] == [31, 32]
    # Another life of the dashboard knows nothing of that message: it sends everything, which it has from the files.
    again = Dashboard([tmp_path / "runs"], [], None)
    ((_, parts),) = asyncio.run(messages(again, again._look_at_run("a"), last, 1))
    assert parts["rows"]["from"] == 0 and len(parts["rows"]["columns"]["step"]) == 32
    for junk in ("", ".", "x.y", f"{again._session}.-3", f"{again._session}.999999999999"):
        assert asyncio.run(messages(again, again._look_at_run("a"), junk, 1))


def test_a_page_says_how_a_run_ended_and_what_to_do(tmp_path: Path) -> None:
    lively_run(tmp_path / "done")
    dead = Recorder(tmp_path / "dead", "name: dead\nruns: runs\n")
    dead.at(0, "launched", -1, resume=False)
    dead.started(0.1)
    dead.steps(1, range(1, 4))
    failed = Recorder(tmp_path / "failed")
    failed.at(0, "launched", -1, resume=False)
    failed.started(0.1)
    failed.at(1, "error", 1, step=3, type="ValueError", message="no such thing", hint="look there")

    def ending(name: str) -> dict[str, Any]:
        return Dashboard([tmp_path], [], None)._look_at_run(name)(-1)[0]["ending"]

    assert ending("done")["state"] == "finished" and "tutti generate" in ending("done")["moves"][0]["command"]
    assert "without a word" in ending("dead")["said"] and "no checkpoint" in ending("dead")["said"]
    assert ending("dead")["moves"][0]["command"] == "tutti train runs/dead/config.yaml --resume"
    assert "no such thing" in ending("failed")["said"] and "look there" in ending("failed")["said"]
    missing, _ = Dashboard([tmp_path], [], None)._look_at_run("../etc")(-1)
    assert missing == {"missing": {"what": "run", "name": "../etc"}}


def test_files_that_hold_anything_spoil_one_page_and_no_other(tmp_path: Path) -> None:
    lively_run(tmp_path / "good")
    bad = Recorder(tmp_path / "bad")
    bad.started(0)
    bad.at(1, "step", step="many", loss=1.0)
    dashboard = Dashboard([tmp_path], [], None)
    states = {run["name"]: run["state"] for run in dashboard._look_at_all(-1)[0]["all"]["runs"]}
    assert states == {"good": "finished", "bad": "unreadable"}
    ((_, parts),) = asyncio.run(messages(dashboard, dashboard._look_at_run("bad"), "", 1))
    assert "ValueError" in parts["problem"]


def test_alerts_stand_on_the_page(tmp_path: Path) -> None:
    r = Recorder(tmp_path / "r", "name: r\nalerts: {straggler: 1.5}\n")
    r.started(0)
    for step in range(1, 25):
        for rank, alone in enumerate((0.2, 0.5)):
            spoken = {"loss": 2.0, "tokens": 10, "seconds": 1.0} if rank == 0 else {}
            r.at(step, "step", rank, step=step, alone_seconds=alone, **spoken)
    (r.run / "live" / "rank-0.json").write_text(
        json.dumps({"rank": 0, "time": 4e9, "step": 24, "phase": "data"})
    )
    parts, _ = Dashboard([tmp_path], [], None)._look_at_run("r")(-1)
    assert parts["run"]["state"] == "running"
    said = {alert["rule"]: alert["said"] for alert in parts["alerts"]}
    assert "rank 1 works 2.5 times as long" in said["straggler"]


def test_addresses_of_services() -> None:
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/metrics"):
        assert ServicePage(url, None).url == "http://h:1"
    for url in ("h:1", "ftp://h", "http://"):
        with pytest.raises(ConfigError, match="no address"):
            ServicePage(url, None)


def test_a_service_is_remembered_and_its_silence_is_told(tmp_path: Path) -> None:
    page = ServicePage("http://127.0.0.1:9", None, tmp_path)
    assert "cannot be reached" in page.poll().problem
    assert page.summary()["state"] == "unreachable"
    again = ServicePage("http://127.0.0.1:9", None, tmp_path)
    assert (
        len(page.recent()) == 1 and again.recent() == []
    )  # what was long ago is drawn, and judged by nobody
    parts, number = again.look(-1)
    assert parts["service"]["state"] == "unreachable" and number == 1


def test_pages_that_somebody_looks_at_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are kept usually; and nothing is kept for ever."""
    for number in range(11):
        recorder = Recorder(tmp_path / f"run-{number}")
        recorder.started(0)
        recorder.steps(0, range(1, 3))
    dashboard, made = Dashboard([tmp_path], [], None), list[str]()
    clock = SimpleNamespace(monotonic=lambda: float(len(made)))
    monkeypatch.setattr(app_module, "time", clock)
    real = app_module.RunPage
    monkeypatch.setattr(app_module, "RunPage", lambda run, name: made.append(name) or real(run, name))
    for _ in range(3):
        for number in range(11):
            dashboard._look_at_run(f"run-{number}")(-1)
    assert len(made) == 11
    clock.monotonic = lambda: 1000.0
    dashboard._look_at_run("run-0")(-1)
    assert len(dashboard._pages) == 8 and "run-0" in dashboard._pages
