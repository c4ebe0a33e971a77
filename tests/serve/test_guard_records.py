"""What is written down and counted of each request: the audit log, the metrics, the messages of the service."""

from __future__ import annotations

import json
import logging
import re
import stat
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from served_models import scripted_service, served
from tutti.config import ServiceConfig
from tutti.core.errors import ConfigError
from tutti.serve.guard.keyring import Keyring, Quota
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.logs import redact_logs
from tutti.serve.http import make_app

KEY = "sk-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def guard(**settings: Any) -> Guard:
    return Guard(KEY, ServiceConfig.model_validate(settings))


def client(address: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_request_has_a_line_and_no_prompt_is_in_it(tmp_path: Path) -> None:
    file, keys = tmp_path / "audit.jsonl", tmp_path / "keys.json"
    key = Keyring(keys).add("anna", ["generate"], None, Quota())
    settings = guard(audit={"file": str(file)}, keys=str(keys), redact={"outputs": True})
    with served(make_app(scripted_service(["mail a@b.org", " now"]), settings)) as address:
        ask = client(address, key)
        asked: dict[str, Any] = {"model": "tiny", "prompt": "my secret", "max_tokens": 5}
        ask.completions.create(**asked)
        list(ask.completions.create(stream=True, **asked))
        httpx.get(f"{address}/v1/users/anna@example.org?mail=anna@example.org")
        httpx.get(f"{address}/health")
    done, streamed, stranger, health = lines_of(file)
    assert "secret" not in file.read_text() and "example.org" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for line in (done, streamed):
        expected = {
            "key": "anna", "method": "POST", "route": "/v1/completions", "status": 200, "whole": True,
            "prompt_tokens": 9, "new_tokens": 2, "redactions": {"EMAIL_ADDRESS": 1}, "harm": None,
        }  # fmt: skip
        assert {name: line[name] for name in expected} == expected
        assert set(line) - set(expected) == {"id", "time", "milliseconds"} and line["milliseconds"] > 0
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    assert (stranger["key"], stranger["status"], stranger["route"]) == (None, 401, "other")
    assert (health["key"], health["status"], health["route"]) == (None, 200, "/health")


def test_prompts_are_logged_only_on_request_and_then_redacted(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    service = scripted_service(["ok"])
    with served(make_app(service, guard(audit={"file": str(file), "log_prompts": True}))) as address:
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5}
        client(address).completions.create(prompt="I am a@b.org", **asked)
        client(address).chat.completions.create(
            messages=[{"role": "user", "content": "call +4930123456"}], **asked
        )
        client(address).completions.create(prompt=[5, 6], **asked)
    first, second, third = lines_of(file)
    assert third["prompt"] == {"prompt": "2 tokens or lists of them"} and third["status"] == 200
    assert first["prompt"] == {"prompt": "I am [EMAIL_ADDRESS]"} and first["redactions"] == {}
    assert second["prompt"] == {"messages": [{"role": "user", "content": "call [PHONE_NUMBER]"}]}
    script: Any = service.engine
    assert {"<user>call +4930123456<assistant>", "I am a@b.org"} < set(script.prompts)


def test_the_log_is_set_aside_when_it_is_full(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    settings = guard(audit={"file": str(file), "file_bytes": 1000, "files": 2})
    with served(make_app(scripted_service(["ok"]), settings)) as address:
        for _ in range(20):
            httpx.get(f"{address}/health")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= 1000 and lines_of(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match=r"audit\.file: cannot write"):
        guard(audit={"file": str(tmp_path / "nowhere" / "audit.jsonl")})


def test_a_log_beside_which_no_file_is_kept_stays_small(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    settings = guard(audit={"file": str(file), "file_bytes": 1000, "files": 0})
    with served(make_app(scripted_service(["ok"]), settings)) as address:
        last = [httpx.get(f"{address}/health").headers["x-request-id"] for _ in range(20)][-1]
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]
    assert file.stat().st_size <= 1000 and lines_of(file)[-1]["id"] == last


@pytest.mark.parametrize(
    ("given", "taken"),
    [("abc-1.2_3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("a;b", False)],
)
def test_a_request_has_the_id_that_it_came_with_if_that_is_one(given: str, taken: bool) -> None:
    with served(make_app(scripted_service(["ok"]), KEY)) as address:
        for headers in ({}, HEADERS):
            answer = httpx.get(f"{address}/v1/models", headers={"X-Request-Id": given, **headers})
            found = answer.headers["x-request-id"]
            assert found == given if taken else re.fullmatch(r"req-[0-9a-f]{32}", found)


def test_metrics_are_for_keys_with_their_scope_and_count(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    writer = Keyring(keys).add("anna", ["generate"], None, Quota())
    watcher = Keyring(keys).add("prometheus", ["metrics"], None, Quota())
    settings = guard(keys=str(keys), redact={"outputs": True}, filter={"outputs": True})
    said = ["a@b.org is it. ", "Go kill yourself", " now."]
    with served(make_app(scripted_service(said), settings)) as address:
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert (
            httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {writer}"}).status_code == 403
        )
        client(address, writer).completions.create(model="tiny", prompt="12345", max_tokens=5)
        asked, end = 'status="200"', time.monotonic() + 20
        while True:  # a request is counted when it is over, a moment after the client has the last byte
            page = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {watcher}"})
            if any("completions" in line and asked in line for line in page.text.splitlines()):
                break
            assert time.monotonic() < end
    assert page.headers["content-type"].startswith("text/plain")
    samples = {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(page.text)
        for one in family.samples
    }
    route = ("route", "/v1/completions")
    expected = {
        ("tutti_requests_total", ("method", "POST"), route, ("status", "200")): 1,
        ("tutti_requests_total", ("method", "GET"), ("route", "/metrics"), ("status", "401")): 1,
        ("tutti_requests_total", ("method", "GET"), ("route", "/metrics"), ("status", "403")): 1,
        ("tutti_request_seconds_count", route): 1,
        ("tutti_first_piece_seconds_count", route): 1,
        ("tutti_tokens_total", ("direction", "read")): 5,
        ("tutti_tokens_total", ("direction", "written")): 3,
        ("tutti_redactions_total", ("kind", "EMAIL_ADDRESS")): 1,
        ("tutti_withheld_total",): 1,
        ("tutti_slots_in_use",): 0,
        ("tutti_queue_length",): 0,
        ("tutti_engine_up",): 1,
    }
    assert {name: samples.get(name) for name in expected} == expected


def test_messages_of_the_service_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    logger, handler = logging.Logger("a"), logging.StreamHandler()
    logger.addHandler(handler)
    redact_logs(logger)
    try:
        raise ValueError("what is +44 7700 900 123?")
    except ValueError:
        logger.exception("said %s", "anna@example.org")
    said = capsys.readouterr().err
    assert "said [EMAIL_ADDRESS]" in said and "what is [PHONE_NUMBER]?" in said
    assert "7700" not in said and "Traceback" in said


def test_a_defect_is_told_without_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    service = scripted_service(["ok"])
    script: Any = service.engine
    script.submit = lambda request: 1 / 0
    with served(make_app(service, KEY)) as address, pytest.raises(openai.InternalServerError) as defect:
        client(address).completions.create(model="tiny", prompt="x", max_tokens=1)
    assert defect.value.status_code == 500 and defect.value.response.headers["x-request-id"]
    error = defect.value.response.json()["error"]
    assert (error["type"], error["message"]) == ("server_error", "this is a defect of the service")
