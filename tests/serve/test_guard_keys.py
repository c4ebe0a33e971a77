"""Who may ask: keys in a file, their scopes and quotas, as OpenAI's own client meets them over a socket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.datastructures import Headers

from served_models import served, tiny_service
from tutti.cli import run
from tutti.config import ServiceConfig
from tutti.core.errors import ConfigError
from tutti.serve.guard.exchange import Exchange, exchange_of
from tutti.serve.guard.keyring import Keyring, Quota
from tutti.serve.guard.keys import Keys
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.scopes import NEEDED, OPEN
from tutti.serve.http import make_app
from tutti.serve.service import Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = tiny_service()
    yield made
    made.engine.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def address(service: Service, file: Path) -> Iterator[str]:
    """Of a service with a file of keys that holds one, of nobody that asks here."""
    Keyring(file).add("another", ["admin"], None, Quota())
    with served(make_app(service, Guard("unused", ServiceConfig(keys=str(file))))) as url:
        yield url


def client(address: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def complete(address: str, key: str) -> Any:
    return client(address, key).completions.create(model="tiny", prompt="x", max_tokens=3)


def test_the_file_holds_hashes_and_is_nobody_elses(file: Path) -> None:
    before = os.umask(0)
    try:
        key = Keyring(file).add("anna", ["generate"], None, Quota(requests_per_day=5))
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert key.startswith("sk-tutti-") and len(key) > 50 and key not in text
    entry = json.loads(text)["keys"][0]
    assert entry["secrets"] == [{"sha256": hashlib.sha256(key.encode()).hexdigest()}]
    assert (entry["name"], entry["scopes"], entry["quota"]) == ("anna", ["generate"], {"requests_per_day": 5})
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read or written by others"):
        Keyring(file).find(key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no file of keys"),
        ('{"keys": [{"name": "a"}]}', r"keys\.0\.scopes"),
        ('{"keys": [{"name": "a", "scopes": ["root"], "made": 1.0, "secrets": []}]}', r"keys\.0\.scopes\.0"),
        ('{"keys": [{"name": "a", "scopes": [], "made": 1.0, "secrets": []}], "more": 1}', "more"),
        (
            '{"keys": [%s, %s]}' % (('{"name": "a", "scopes": [], "made": 1.0, "secrets": []}',) * 2),
            "two keys of one name",
        ),
    ],
)
def test_a_damaged_file_is_said(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        Keyring(file).find("sk-x")


def test_makers_of_keys_do_not_lose_each_others(file: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: Keyring(file).add(f"k{n}", ["embed"], None, Quota()))  # type: ignore[misc]
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {key.name for key in Keyring(file).keys} == {f"k{n}" for n in range(8)}


def test_a_key_is_good_from_the_moment_it_is_made_until_it_is_revoked(address: str, file: Path) -> None:
    key = Keyring(file).add("anna", ["generate"], None, Quota())
    answer = client(address, key).completions.with_raw_response.create(model="tiny", prompt="x", max_tokens=3)
    assert answer.parse().usage.completion_tokens == 3
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    Keyring(file).revoke("anna")
    with pytest.raises(openai.AuthenticationError, match="not known"):
        complete(address, key)


def test_what_the_scope_lacks_is_said(address: str, file: Path) -> None:
    key = Keyring(file).add("anna", ["embed"], None, Quota())
    with pytest.raises(openai.PermissionDeniedError, match="lacks the scope 'generate'") as refused:
        complete(address, key)
    assert refused.value.code == "insufficient_scope"
    assert [one.id for one in client(address, key).models.list()] == ["tiny"]
    nowhere = httpx.get(f"{address}/v1/nothing", headers={"Authorization": f"Bearer {key}"})
    assert nowhere.status_code == 403
    everything = Keyring(file).add("root", ["admin"], None, Quota())
    headers = {"Authorization": f"Bearer {everything}"}
    assert httpx.get(f"{address}/v1/nothing", headers=headers).status_code == 404
    assert complete(address, everything).usage.completion_tokens == 3


def test_rotated_keys_live_side_by_side_for_a_while(
    address: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Keyring(file).add("anna", ["generate"], None, Quota())
    new = Keyring(file).rotate("anna", keep_seconds=60)
    complete(address, old), complete(address, new)
    newest = Keyring(file).rotate("anna", keep_seconds=3600)
    now = time.time()
    assert Keyring(file).find(old) is not None and Keyring(file).find(new) is not None
    monkeypatch.setattr(
        time, "time", lambda: now + 61
    )  # what was to end in a minute does not live longer for it
    assert Keyring(file).find(old) is None and Keyring(file).find(new) is not None
    Keyring(file).rotate("anna", keep_seconds=0)
    assert Keyring(file).find(new) is None and Keyring(file).find(newest) is None


def test_a_key_that_has_run_out_opens_nothing(address: str, file: Path) -> None:
    key = Keyring(file).add("anna", ["admin"], time.time() - 1, Quota())
    with pytest.raises(openai.AuthenticationError):
        complete(address, key)


def test_a_file_that_cannot_be_read_lets_nobody_in(address: str, file: Path) -> None:
    key = Keyring(file).add("anna", ["generate"], None, Quota())
    complete(address, key)
    file.write_text("{")
    with pytest.raises(openai.InternalServerError, match="keys cannot be looked up") as refused:
        complete(address, key)
    assert refused.value.status_code == 503
    file.unlink()
    with pytest.raises(openai.InternalServerError):
        complete(address, key)
    assert httpx.get(f"{address}/health").status_code == 200


def test_more_than_the_quota_is_told_when_to_come_again(address: str, file: Path) -> None:
    key = Keyring(file).add("anna", ["generate"], None, Quota(requests_per_minute=3, requests_per_day=100))
    raw = client(address, key).completions.with_raw_response
    told = [raw.create(model="tiny", prompt="x", max_tokens=1).headers for _ in range(3)]
    assert [one["x-ratelimit-remaining-requests"] for one in told] == ["2", "1", "0"]
    assert {one["x-ratelimit-limit-requests"] for one in told} == {"3"}
    with pytest.raises(openai.RateLimitError, match="3 requests in a minute") as refused:
        complete(address, key)
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-reset-requests"] == f"{headers['retry-after']}s"
    # Another key has its own.
    complete(address, Keyring(file).add("bert", ["generate"], None, Quota(requests_per_minute=1)))


def test_tokens_are_counted_read_and_written_also_of_streams(address: str, file: Path) -> None:
    quota = Quota(tokens_per_minute=24)
    key = Keyring(file).add("anna", ["generate"], None, quota)
    create = client(address, key).completions.with_raw_response.create
    first = create(model="tiny", prompt="12345", max_tokens=7)
    assert first.headers["x-ratelimit-remaining-tokens"] == "24"
    list(client(address, key).completions.create(model="tiny", prompt="123", max_tokens=4, stream=True))
    again = create(model="tiny", prompt="1234", max_tokens=1)
    assert again.headers["x-ratelimit-remaining-tokens"] == str(24 - 12 - 7)
    with pytest.raises(openai.RateLimitError, match="24 tokens in a minute"):
        complete(address, key)


def test_a_stream_counts_before_the_client_can_ask_again(file: Path) -> None:
    """However long the service needs after the last event until it has done with the request."""
    key = Keyring(file).add("anna", ["generate"], None, Quota(tokens_per_minute=24))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).prompt_tokens, exchange_of(scope).new_tokens = 3, 4
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: [DONE]", "more_body": True})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})

    async def ask(sent: Any) -> None:
        scope = {
            "type": "http",
            "path": "/v1/completions",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
            "state": {"exchange": Exchange("one", "POST", "/v1/completions")},
        }
        await keys(scope, None, sent)  # type: ignore[arg-type]

    left: list[str] = []

    async def second(message: Any) -> None:
        if message["type"] == "http.response.start":
            left.append(Headers(scope=message)["x-ratelimit-remaining-tokens"])

    async def first(message: Any) -> None:
        if message.get("body"):
            await ask(second)

    keys = Keys(app, Keyring(file))
    asyncio.run(ask(first))
    asyncio.run(ask(second))
    assert left == [str(24 - 7), str(24 - 14)]


def test_no_route_and_no_method_is_open_but_the_two(address: str, service: Service, file: Path) -> None:
    key = Keyring(file).add("root", ["admin"], None, Quota())
    routes = httpx.get(f"{address}/openapi.json", headers={"Authorization": f"Bearer {key}"}).json()["paths"]
    known = {path.replace("{name}", "{name:path}") for path in routes}
    assert known - OPEN <= set(NEEDED), "a new route has to say what a key needs for it"
    odd = [
        "/openapi.json",
        "/docs",
        "/redoc",
        "/",
        "/nothing",
        "//health",
        "/health/",
        "/HEALTH",
        "/health/../v1/models",
    ]
    odd += ["/v1/models/x", "/%2e/health", "/health%2f..%2fv1/models", "/health;x", "/ready/x", "*"]
    for path in [*routes, *odd]:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "XYZ"):
            if method == "CONNECT":
                continue  # has no path
            response = _raw(address, method, path)
            if method == "XYZ":  # which is none of HTTP
                assert response == 400, path
            elif path in OPEN:
                assert response in (200, 405), (method, path)
            else:
                assert response == 401, (method, path, response)


def _raw(address: str, method: str, path: str) -> int:
    """The status, of a path that no client has tidied."""
    import http.client

    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.putrequest(method, path, skip_host=False)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("given", ["", "Bearer", "Basic {}", "{}", "Bearer {}x", "Bearer {} {}", "Bearer ü"])
def test_only_a_whole_key_is_a_key(address: str, file: Path, given: str) -> None:
    key = Keyring(file).add("anna", ["admin"], None, Quota())
    header = given.replace("{}", key).encode("latin-1")
    response = httpx.get(f"{address}/v1/models", headers=[(b"Authorization", header)])
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")


def test_keys_from_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def keys(*words: str) -> tuple[int, str]:
        code = run(["keys", *words, "--file", str(file)])
        found = capsys.readouterr()
        return code, found.out + found.err

    code, said = keys("add", "anna", "--scope", "generate", "--scope", "embed", "--expires", "90d")
    assert code == 0
    key = said.splitlines()[0].strip()
    found = Keyring(file).find(key)
    assert found is not None and found.scopes == ("generate", "embed")
    assert found.expires is not None and abs(found.expires - time.time() - 90 * 86400) < 60
    code, said = keys("list", "--json")
    assert code == 0 and key not in said and "sha256" not in said
    assert json.loads(said)["keys"][0]["name"] == "anna"
    code, said = keys("rotate", "anna", "--keep", "1h", "--json")
    assert Keyring(file).find(json.loads(said)["key"]) is not None and Keyring(file).find(key) is not None
    assert keys("revoke", "anna")[0] == 0 and Keyring(file).keys == ()
    for words, message in [
        (("revoke", "anna"), "there is no key 'anna'"),
        (("add", "a b", "--scope", "admin"), "is no name for a key"),
        (("add", "x", "--scope", "admin", "--expires", "soon"), "is no span of time"),
        (("add", "x"), "Missing option"),
        (("add", "x", "--scope", "root"), "root"),
    ]:
        code, said = keys(*words)
        assert code == 2 and message in said, said
    keys("add", "x", "--scope", "admin")
    assert "there is a key 'x' already" in keys("add", "x", "--scope", "admin")[1]
