"""`/v1/explain`: the model in the engine, asked without one word after the other, says what it says elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from served_tasks import KEY, listening_at, open_task, write_task

from served_models import served, tiny_service
from tutti.config import ServiceConfig
from tutti.explain import explain, readings_of
from tutti.serve.asking import Asking
from tutti.serve.engine import AskerBackend, EncoderEngine
from tutti.serve.guard.layers import Guard
from tutti.serve.http import make_app
from tutti.tasks.task import Row

TEXT = "why is my card so late in paris"


@pytest.fixture(scope="module", params=["classify", "tag"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Asking:
    return open_task(write_task(tmp_path_factory.mktemp("why") / request.param, request.param))


@pytest.fixture(scope="module")
def http(service: Asking) -> Iterator[httpx.Client]:
    with listening_at(service) as address:
        yield httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def test_it_says_what_the_model_says_when_it_is_asked_directly(service: Asking, http: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as several:
        asked = {"model": service.name, "input": TEXT}
        answers = list(several.map(lambda _: http.post("/v1/explain", json=asked), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text
    (example,) = service.asker.task.asked_about([TEXT])
    direct = explain(service.asker, example, readings_of(service.asker, example), method="ablation")
    for answer in answers:
        body = answer.json()
        assert body["object"] == "list" and body["model"] == service.name
        assert body["usage"]["total_tokens"] > len(TEXT.split())
        assert len(body["data"]) == len(direct) > 0
        for index, (told, expected) in enumerate(zip(body["data"], direct, strict=True)):
            assert (told["index"], told["label"], told["method"]) == (index, expected.label, "ablation")
            weights = [word["attribution"] for word in told["words"]]
            assert weights == pytest.approx(expected.weights, abs=5e-3)
            assert [word["text"] for word in told["words"]] == TEXT.split()
    (route,) = [one for one in http.get("/v1/models").json()["data"][0]["routes"] if "explain" in one]
    assert route == "/v1/explain"


def test_it_comes_as_a_page_too(http: httpx.Client) -> None:
    answer = http.post("/v1/explain", json={"input": TEXT, "format": "html"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "<mark" in answer.text and "paris" in answer.text


def test_what_is_wrong_with_a_question_is_said(http: httpx.Client) -> None:
    answer = http.post("/v1/explain", json={"input": TEXT, "label": "nonsense"})
    assert answer.status_code == 400 and "knows no label 'nonsense'" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "label"
    assert http.post("/v1/explain", json={"input": ["a", "b"]}).status_code == 400
    assert http.post("/v1/explain", json={"input": ""}).status_code == 400


class Held:
    """Computes nothing before it is let."""

    def __init__(self, backend: AskerBackend) -> None:
        self.backend, self.let = backend, threading.Event()

    def answer(self, rows: list[Row]) -> Any:
        self.let.wait(60)
        return self.backend.answer(rows)


def test_whoever_waits_for_reasons_keeps_nobody_else_waiting(service: Asking) -> None:
    """Texts of others are looked at meanwhile: those here are too long for the event loop."""
    held = Held(AskerBackend(service.asker))
    own = Asking("held", EncoderEngine(held, budget_tokens=256, queue_length=999), service.asker, 0)
    others = [
        Guard(KEY, ServiceConfig()),
        Guard(KEY, ServiceConfig.model_validate({"redact": {"inputs": True}})),
    ]

    async def ask(guard: Guard) -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(own, guard)), base_url="http://x", timeout=60,
            headers={"Authorization": f"Bearer {KEY}"},
        ) as client:  # fmt: skip
            asked = [asyncio.create_task(client.post("/v1/explain", json={"input": TEXT})) for _ in range(40)]
            await asyncio.sleep(0.5)
            body = {"input": "", "unknown": "x " * 4000}
            answer = await asyncio.wait_for(client.post(own.kind.routes[0], json=body), 10)
            assert answer.status_code == 400
            held.let.set()
            assert {one.status_code for one in await asyncio.gather(*asked)} == {200}
            held.let.clear()

    try:
        for guard in others:
            asyncio.run(ask(guard))
    finally:
        held.let.set()
        own.close()


def test_a_model_that_writes_has_nothing_of_the_kind() -> None:
    service = tiny_service()
    with served(make_app(service, KEY)) as address:
        answer = httpx.post(
            f"{address}/v1/explain", json={"input": "a"}, headers={"Authorization": f"Bearer {KEY}"}
        )
    service.close()
    assert answer.status_code == 404 and "writer" in answer.json()["error"]["message"]


def test_nobody_is_answered_without_a_key(http: httpx.Client) -> None:
    assert httpx.post(http.base_url.join("/v1/explain"), json={"input": "a"}).status_code == 401
