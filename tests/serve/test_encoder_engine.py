"""The engine of models that do not write: a real tiny model behind a gate, so that what waits is known."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served_tasks import KEY, listening_at, open_task, write_task

from tutti.serve import asking
from tutti.serve.asking import Asking, Failed, Late
from tutti.serve.engine import AskerBackend, EncoderEngine, Full, Job, Stopped
from tutti.tasks.task import Row


class Gated:
    """Computes a pass when it is let, and knows which there were."""

    def __init__(self, backend: AskerBackend) -> None:
        self._backend, self._gate = backend, threading.Semaphore(0)
        self.begun: queue.Queue[list[Row]] = queue.Queue()
        self.broken = False

    def answer(self, rows: list[Row]) -> Any:
        self.begun.put(rows)
        self._gate.acquire()
        if self.broken:
            raise RuntimeError("out of paper")
        return self._backend.answer(rows)

    def let(self, passes: int = 1) -> None:
        self._gate.release(passes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("engine") / "intents", "classify")


@pytest.fixture
def service(place: Path) -> Iterator[Asking]:
    """Whose passes have 32 tokens at most, and at which 8 rows may wait."""
    found = open_task(place)
    found.close()
    gated = Gated(AskerBackend(found.asker))
    engine = EncoderEngine(gated, budget_tokens=32, queue_length=8)
    made = Asking("intents", engine, found.asker, 0)
    made.__dict__["gated"] = gated
    yield made
    gated.let(1000)
    engine.close()


def rows_of(service: Asking, *texts: str) -> list[Row]:
    read = service.asker.read(service.examples(texts))
    return [read[at] for at in range(len(read))]


def submitted(service: Asking, *texts: str, deadline: float | None = None) -> tuple[Job, queue.Queue[Job]]:
    ended: queue.Queue[Job] = queue.Queue()
    job = Job(rows_of(service, *texts), ended.put, deadline)
    service.engine.submit(job)
    return job, ended


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gate(service: Asking) -> Gated:
    gated: Gated = service.__dict__["gated"]
    return gated


def test_what_comes_meanwhile_is_computed_together_and_everybody_gets_the_own_answers(
    service: Asking,
) -> None:
    gated = gate(service)
    first, first_end = submitted(service, "lost")
    assert len(gated.begun.get(timeout=20)) == 1  # at once: nobody else is waited for
    others = [submitted(service, f"why is the card {word}") for word in ("late", "wrong", "lost", "new")]
    gated.let(10)
    assert len(gated.begun.get(timeout=20)) == 4
    for job, ended in [(first, first_end), *others]:
        assert ended.get(timeout=20) is job and job.outcome == "done"
    for job in [first, *(job for job, _ in others)]:
        (expected,) = service.asker.answer(list(job.rows))
        np.testing.assert_allclose(job.answers[0], expected, atol=1e-5)
    assert service.engine.queued == 0


def test_passes_keep_to_the_budget_and_a_request_may_take_several(service: Asking) -> None:
    gated = gate(service)
    gated.let(100)
    job, ended = submitted(service, *["the money did not arrive in paris"] * 20)  # 9 tokens each
    assert ended.get(timeout=20) is job and all(answer is not None for answer in job.answers)
    sizes = [len(gated.begun.get()) for _ in range(gated.begun.qsize())]
    assert sum(sizes) == 20 and max(sizes) == 3


def test_too_many_are_refused_but_one_alone_may_be_long(service: Asking) -> None:
    gated = gate(service)
    submitted(service, *["lost"] * 20)
    gated.begun.get(timeout=20)
    with pytest.raises(Full):
        submitted(service, "late")
    assert service.engine.seconds_to_go >= 0
    gated.let(100)


def test_who_is_gone_or_late_is_told_and_not_computed(service: Asking) -> None:
    gated = gate(service)
    submitted(service, "lost")
    gated.begun.get(timeout=20)
    gone, gone_end = submitted(service, "card")
    _, late_end = submitted(service, "card", deadline=time.monotonic() - 1)
    _, there_end = submitted(service, "card")
    gone.cancelled = True
    gated.let(10)
    assert there_end.get(timeout=20).outcome == "done"
    assert (gone_end.get(timeout=20).outcome, late_end.get(timeout=20).outcome) == ("cancelled", "timeout")
    assert len(gated.begun.get(timeout=20)) == 1 and service.engine.queued == 0


def test_a_pass_that_fails_takes_nobody_else_with_it(service: Asking) -> None:
    gated = gate(service)
    gated.broken = True
    long, ended = submitted(service, *["the money did not arrive in paris"] * 4)  # 9 tokens each: two passes
    gated.begun.get(timeout=20)
    _, other = submitted(service, "late")
    gated.let(1)
    assert ended.get(timeout=20) is long and long.outcome == "error"
    assert len(gated.begun.get(timeout=20)) == 1  # of the long one nothing more
    assert service.problem == "the last pass failed: RuntimeError: out of paper"
    gated.broken = False
    gated.let(1)
    assert other.get(timeout=20).outcome == "done"
    assert service.problem is None and service.engine.queued == 0 and ended.empty()


def test_who_waits_when_it_ends_is_told_and_nobody_comes_in(service: Asking) -> None:
    gated = gate(service)
    _, first = submitted(service, "lost")
    gated.begun.get(timeout=20)
    _, waits = submitted(service, "late")
    closing = threading.Thread(target=service.close)
    closing.start()
    while not service.engine._closing:
        time.sleep(0.01)
    with pytest.raises(Stopped):
        submitted(service, "late")
    gated.let(1)
    closing.join(20)
    assert (first.get(timeout=20).outcome, waits.get(timeout=20).outcome) == ("done", "cancelled")
    assert service.problem == "the engine has stopped" and service.engine.queued == 0


def test_who_asks_is_told_that_it_took_too_long(service: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_DEADLINE_SECONDS", -1.0)
    with pytest.raises(Late):
        asyncio.run(service.ask(service.examples(["lost"])))


def test_who_asks_what_cannot_be_computed_is_told(service: Asking) -> None:
    async def ask() -> None:
        asking = asyncio.ensure_future(service.ask(service.examples(["lost"])))
        await asyncio.sleep(0)
        gate(service).let(10)
        gate(service).broken = True
        await asking

    with pytest.raises(Failed):
        asyncio.run(ask())


def test_a_long_text_is_cut_into_the_same_tokens(service: Asking) -> None:
    text = "why is the card late " * 1000
    gate(service).let(100)
    said = asyncio.run(service.ask(service.examples([text])))
    assert said.rows[0] == service.asker.read(service.examples([text]))[0]


def test_over_http_too_many_come_again_later_and_who_hangs_up_is_dropped(
    service: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated, jobs, submit = gate(service), [], service.engine.submit
    monkeypatch.setattr(service.engine, "submit", lambda job: (jobs.append(job), submit(job)))
    with listening_at(service) as address:
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"})
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/classify", json={"input": ["lost"] * 20}, timeout=1.0)
        full = client.post("/v1/classify", json={"input": "late"})
        assert full.status_code == 429 and int(full.headers["Retry-After"]) >= 1
        gated.begun.get(timeout=20)
        until(lambda: jobs[0].cancelled)  # the server may learn only now that its client is gone
        gated.let(1)
        until(lambda: not service.engine.queued)  # of 20 rows one pass was computed, and no more
        assert gated.begun.empty()
        gated.let(100)
        assert client.post("/v1/classify", json={"input": "late"}).status_code == 200
