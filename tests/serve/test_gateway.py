"""A gateway with real workers: versions come and go, workers are killed and frozen, and every request is answered once,
rightly, and written down."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gateways import HEADERS, Gateway, Load, Said, gateway, said_in
from served_tasks import write_task
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

from tutti.cli import run
from tutti.observe.metrics import parse_sample
from tutti.serve.gateway.fleet import is_chosen
from tutti.serve.release import Registry

pytestmark = pytest.mark.distributed

TEXTS = ["my card is lost", "where is the money that did not arrive", "exchange", "why is the fee so late?"]
BODIES = [{"input": text} for text in TEXTS]
AS_IT_IS = ("--engine", "native", "--weights", "as-they-are")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good model; the same with another opinion; one that is slow; one that cannot read some words."""
    root = tmp_path_factory.mktemp("models")
    good = write_task(root / "good", "classify")
    for name in ("other", "slow", "failing"):
        shutil.copytree(good, root / name)
    turned = AutoModelForSequenceClassification.from_pretrained(good)
    with torch.no_grad():
        turned.classifier.weight.neg_()
        turned.classifier.bias.neg_()
    turned.save_pretrained(root / "other")
    slow = AutoModelForSequenceClassification.from_pretrained(
        good, num_hidden_layers=500, ignore_mismatched_sizes=True
    )
    slow.save_pretrained(root / "slow")
    words = AutoModelForSequenceClassification.from_pretrained(good)
    words.resize_token_embeddings(10)  # of 100 and more that the tokenizer gives
    words.save_pretrained(root / "failing")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def labels(places: dict[str, Path]) -> dict[str, dict[str, Said]]:
    """What each model says to each text, as transformers has it."""
    found: dict[str, dict[str, Said]] = {}
    for name in ("good", "other"):
        classify = pipeline("text-classification", model=str(places[name]), device="cpu")
        found[name] = {text: (one["label"], one["score"]) for text in TEXTS for one in classify(text)}
    assert all(found["good"][text][0] != found["other"][text][0] for text in TEXTS)
    chances = sorted(chance for _, chance in found["good"].values())
    assert min(b - a for a, b in itertools.pairwise(chances)) > 0.001  # so each text has an answer of its own
    return found


def right(labels: dict[str, Said], text: str, said: Any) -> bool:
    """Whether it is what the model says."""
    label, chance = labels[text]
    return bool(said[0] == label and abs(said[1] - chance) < 1e-4)


@pytest.fixture(scope="module")
def house(
    places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Registry, Path]]:
    """A service of releases with two workers, its registry, and its audit log."""
    root = tmp_path_factory.mktemp("house")
    directory, audit = root / "intents", root / "audit.jsonl"
    assert run(["deploy", str(places["good"]), "--to", str(directory)]) == 0
    rules = [f"audit.file={audit}", "release.least_requests=50"]
    with gateway(directory, "--processes", "2", *AS_IT_IS, *rules) as made:
        yield made, Registry(directory), audit


def serving(made: Gateway, number: int) -> None:
    made.until_said(f"version {number} serves now")


def asked_now(made: Gateway) -> str:
    """The version that answers a request."""
    return str(made.http.post("/v1/classify", json=BODIES[0]).headers.get("x-tutti-version"))


def rightly(load: Load, labels: dict[str, Said]) -> None:
    """Every request was answered, and as the model answers."""
    assert not load.problems
    assert Counter(status for _, status, _, _ in load.answers) == {200: len(load.answers)}
    assert all(right(labels, *said) for *_, said in load.answers)


def audited(audit: Path, load: Load) -> None:
    """What the client has on record and what the service has is the same."""
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    known = Counter(line["id"] for line in lines if line["whole"] and line["status"] == 200)
    assert all(known[name] >= 1 for name, _, _, _ in load.answers)


def test_answers_are_those_of_the_model_and_name_their_version(house: Any, labels: Any) -> None:
    made, _, _ = house
    for text in TEXTS:
        answer = made.http.post("/v1/classify", json={"input": text, "model": "intents"})
        assert right(labels["good"], text, said_in(answer))
        assert answer.headers["x-tutti-version"] == "1"
    assert made.http.get("/v1/models").json()["data"][0]["id"] == "intents"
    assert made.http.get("/health").json() == {"status": "ok"}
    assert httpx.post(f"{made.address}/v1/classify", json=BODIES[0]).status_code == 401
    assert made.http.get("/vitals").status_code == 404
    asked = made.http.post("/v1/classify", json=BODIES[0], headers={"x-tutti-version": "7"})
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "version_not_served")
    assert made.metric("tutti_workers", version="1") == 2
    seen = parse_sample(made.http.get("/metrics").text, 0.0).versions["1"]  # as the dashboard has it
    assert (seen["share"], seen["ready"], seen["wanted"], seen["restarts"]) == (1.0, 2.0, 2.0, 0.0)
    assert made.metric("tutti_version_requests_total", version="1", status="200") >= 4


def test_a_worker_that_is_killed_costs_nobody_an_answer(house: Any, labels: Any) -> None:
    made, _, audit = house
    with Load(made.address, BODIES) as load:
        time.sleep(0.5)
        first, second = made.workers
        os.kill(first, signal.SIGKILL)
        made.until(lambda: len(made.workers) == 2 and first not in made.workers)
        made.until(lambda: made.metric("tutti_workers", version="1") == 2)
        os.kill(second, signal.SIGKILL)
        made.until(lambda: made.metric("tutti_worker_restarts_total", version="1") == 2)
        made.until(lambda: made.metric("tutti_workers", version="1") == 2)
    rightly(load, labels["good"])
    audited(audit, load)
    assert made.metric("tutti_version_repeated_total", version="1") > 0  # some were with those that died


def test_without_any_worker_health_says_so_and_comes_back(house: Any, labels: Any) -> None:
    made, _, _ = house
    for pid in made.workers:
        os.kill(pid, signal.SIGKILL)
    made.until(lambda: made.http.get("/health").status_code == 503)
    answer = made.http.post("/v1/classify", json=BODIES[0])  # waits until there is one
    assert right(labels["good"], TEXTS[0], said_in(answer))
    made.until(lambda: made.http.get("/ready").status_code == 200)


@pytest.mark.slow
def test_a_worker_that_is_frozen_is_replaced(house: Any) -> None:
    made, _, _ = house
    made.until(lambda: made.metric("tutti_workers", version="1") == 2)
    frozen = made.workers[0]
    os.kill(frozen, signal.SIGSTOP)
    made.until_said("it has not answered for 10 s")
    made.until(lambda: frozen not in made.workers and made.metric("tutti_workers", version="1") == 2)


def test_a_swap_under_load_loses_nothing(house: Any, places: Any, labels: Any) -> None:
    made, registry, audit = house
    with Load(made.address, BODIES) as load:
        time.sleep(0.3)
        registry.deploy(places["other"], None, "another opinion")
        serving(made, 2)
        time.sleep(0.5)
    assert not load.problems and {status for _, status, _, _ in load.answers} == {200}
    for _, _, version, said in load.answers:
        assert right(labels["good" if version == "1" else "other"], *said)
    assert {version for _, _, version, _ in load.answers} == {"1", "2"}
    audited(audit, load)
    made.until(lambda: len(made.workers) == 2)  # the former ones have ended
    assert made.http.post("/v1/classify", json=BODIES[0]).headers["x-tutti-version"] == "2"


def test_a_canary_gets_those_that_are_chosen_and_those_that_ask(house: Any, places: Any, labels: Any) -> None:
    made, registry, _ = house
    registry.deploy(places["good"], 30.0, "")
    made.until_said("version 3 is the canary")
    for number in range(100):
        name = f"canary-{number}"
        answer = made.http.post("/v1/classify", json=BODIES[1], headers={"x-request-id": name})
        version = "3" if is_chosen(name, 30) else "2"
        assert answer.headers["x-tutti-version"] == version
        assert right(labels["good" if version == "3" else "other"], TEXTS[1], said_in(answer))
    for asked, version in [("canary", "3"), ("3", "3"), ("2", "2")]:
        answer = made.http.post("/v1/classify", json=BODIES[0], headers={"x-tutti-version": asked})
        assert answer.headers["x-tutti-version"] == version
    assert made.metric("tutti_version_share", version="3") == 0.3
    registry.promote()
    serving(made, 3)
    assert made.http.post("/v1/classify", json=BODIES[0]).headers["x-tutti-version"] == "3"


def test_a_version_that_fails_is_rolled_back_by_itself(house: Any, places: Any) -> None:
    made, registry, _ = house
    before = registry.state.serving
    number = registry.deploy(places["failing"], 100.0, "").version
    made.until_said(f"version {number} is the canary")
    with Load(made.address, BODIES):
        made.until_said(f"version {number} is rolled back: errors")
    state = registry.state
    assert (state.serving, state.canary) == (before, None)
    assert state.standings[number].state == "rolled back" and "errors" in state.standings[number].why
    assert state.standings[number].by == "tutti serve"
    made.until(lambda: asked_now(made) == str(before))


@pytest.mark.slow
def test_a_version_that_is_slow_is_rolled_back_by_itself(house: Any, places: Any) -> None:
    made, registry, _ = house
    before = registry.state.serving
    number = registry.deploy(places["slow"], 50.0, "").version
    made.until_said(f"version {number} is the canary")
    # Both are asked at the same time: whoever else uses the machine makes both late.
    with Load(made.address, BODIES) as load:
        made.until_said(f"version {number} is rolled back: latency")
    assert not load.problems and {status for _, status, _, _ in load.answers} == {200}
    assert registry.state.serving == before and "latency" in registry.state.standings[number].why
    made.until(lambda: asked_now(made) == str(before))


@pytest.mark.slow
def test_a_version_that_cannot_start_never_serves(house: Any, places: Any, tmp_path: Path) -> None:
    made, registry, _ = house
    before = registry.state.serving
    shutil.copytree(places["good"], tmp_path / "fleeting")
    number = registry.deploy(tmp_path / "fleeting", None, "").version
    (tmp_path / "fleeting" / "model.safetensors").write_bytes(b"nothing")
    line = made.until_said(f"version {number} is rolled back")
    assert f"version {number} has changed" in line and "model.safetensors" in line
    assert registry.state.serving == before
    assert asked_now(made) == str(before)


def test_a_second_gateway_is_refused(house: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _, registry, _ = house
    assert run(["serve", str(registry.directory), "--port", "0"]) == 2
    assert "another process is serving these releases" in capfd.readouterr().err


def test_sigterm_answers_what_was_begun_and_exits_with_0(house: Any, labels: Any) -> None:
    made, _, audit = house
    workers = made.workers
    with Load(made.address, BODIES) as load:
        made.until(lambda: len(load.answers) > 20)
        made.process.send_signal(signal.SIGTERM)
        ready = []
        with contextlib.suppress(httpx.HTTPError):  # until the door is closed
            while True:
                ready.append(httpx.get(f"{made.address}/ready", headers=HEADERS))
        assert made.process.wait(100) == 0
    assert (ready[-1].status_code, ready[-1].headers["connection"]) == (503, "close")
    # Who came when the door was closed, or in the moment when it was, was not begun.
    begun = {json.loads(line)["id"] for line in audit.read_text().splitlines()}
    assert not begun & {problem.partition(":")[0] for problem in load.problems}
    assert {status for _, status, _, _ in load.answers} == {200}
    assert all(right(labels["good"], *said) for *_, said in load.answers)
    audited(audit, load)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_worse_answers_to_the_probe_never_reach_anybody(places: Any, labels: Any, tmp_path: Path) -> None:
    directory, probe = tmp_path / "intents", tmp_path / "probe.jsonl"
    lines = [{"input": text, "expected": label} for text, (label, _) in labels["good"].items()]
    probe.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["deploy", str(places["good"]), "--to", str(directory)]) == 0
    with gateway(directory, *AS_IT_IS, f"release.probe={probe}") as made:
        made.until_said("version 1, probe: 4 of 4 answers as expected")
        Registry(directory).deploy(places["other"], None, "")
        line = made.until_said("version 2 is rolled back: quality")
        assert "quality: 0 of 4 answers as expected of the probe, and 4 of 4" in line
        assert Registry(directory).state.serving == 1
        # And one that is gone when the service starts again: one clear error.
        assert made.end() == 0
    with (directory / "versions" / "0001.json").open() as file:
        assert json.load(file)["place"] == str(places["good"])


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes bytes, and takes its time."""
    place = tmp_path_factory.mktemp("writers") / "tiny"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def events(answer: httpx.Response) -> Iterator[Any]:
    for line in answer.iter_lines():
        if line:
            said = line.removeprefix("data: ")
            yield said if said == "[DONE]" else json.loads(said)


@pytest.mark.slow
def test_streams_of_one_model_behind_a_gateway(writer: Path) -> None:
    """One whose worker dies says so; one whose client leaves is not written; one ends well though SIGTERM comes."""
    with gateway(writer, "--processes", "1", "--weights", "as-they-are") as made:
        asked = {"prompt": "Once", "max_tokens": 1500, "temperature": 0, "stream": True}
        with made.http.stream("POST", "/v1/completions", json=asked) as answer:
            assert answer.headers["x-tutti-version"] == "1"
            coming = events(answer)
            next(coming)
            os.kill(made.workers[0], signal.SIGKILL)
            last = list(coming)[-1]
            assert last["error"]["code"] == "engine_stopped"
        whole = made.http.post("/v1/completions", json=asked | {"stream": False, "max_tokens": 300}).json()
        assert whole["usage"]["completion_tokens"] == 300  # by another worker
        with made.http.stream("POST", "/v1/completions", json=asked) as answer:
            next(events(answer))
        made.until(lambda: made.metric("tutti_requests_in_flight", version="1") == 0)
        made.until(lambda: made.metric("tutti_slots_in_use") == 0, seconds=10)
        with made.http.stream("POST", "/v1/completions", json=asked | {"max_tokens": 300}) as answer:
            coming = events(answer)
            texts = [next(coming)["choices"][0]["text"]]
            made.process.send_signal(signal.SIGTERM)
            for event in coming:
                if event != "[DONE]":
                    texts.append(event["choices"][0]["text"])
            assert event == "[DONE]"
        assert "".join(texts) == whole["choices"][0]["text"]
        assert made.process.wait(100) == 0


@pytest.mark.slow
def test_workers_come_and_go_with_the_load(writer: Path) -> None:
    rules = ["scale.up_seconds=1", "scale.down_seconds=2"]
    with gateway(writer, "--processes", "1:2", "--slots", "1", "--weights", "as-they-are", *rules) as made:
        asked = {"prompt": "Once", "max_tokens": 200, "temperature": 0}
        texts: list[str] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                answer = made.http.post("/v1/completions", json=asked)
                texts.append(answer.json()["choices"][0]["text"])

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        made.until_said("1 → 2 workers")
        made.until(lambda: made.metric("tutti_workers", version="1") == 2)
        over.set()
        for thread in threads:
            thread.join(60)
        made.until_said("2 → 1 workers")
        made.until(lambda: len(made.workers) == 1)
        assert made.metric("tutti_scaled_total", direction="up") == 1
        assert len(texts) >= 6 and len(set(texts)) == 1
        assert made.http.post("/v1/completions", json=asked).json()["choices"][0]["text"] == texts[0]


def test_a_service_of_one_process_ends_a_stream_too(writer: Path) -> None:
    with gateway(writer, "--weights", "as-they-are") as made:
        asked = {"prompt": "Once", "max_tokens": 400, "temperature": 0, "stream": True}
        with made.http.stream("POST", "/v1/completions", json=asked) as answer:
            coming = events(answer)
            next(coming)
            made.process.send_signal(signal.SIGTERM)
            made.until(lambda: httpx.get(f"{made.address}/ready").status_code == 503, seconds=1)
            *_, last = coming
            assert last == "[DONE]"
        assert made.process.wait(100) == 0


@pytest.mark.slow
def test_a_gateway_that_is_killed_leaves_no_worker(writer: Path) -> None:
    with gateway(writer, "--processes", "1", "--weights", "as-they-are") as made:
        (worker,) = made.workers
        made.process.kill()
        made.process.wait()
        end = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()


def test_what_cannot_be_served_is_said_at_once(
    tmp_path: Path, places: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "releases"
    shutil.copytree(places["good"], tmp_path / "gone")
    assert run(["deploy", str(tmp_path / "gone"), "--to", str(directory)]) == 0
    shutil.rmtree(tmp_path / "gone")
    assert run(["serve", str(directory), "--port", "0"]) == 2
    assert "version 1 is gone" in capfd.readouterr().err
    assert run(["serve", str(directory), "--port", "0", "--processes", "3:1"]) == 2
    assert run(["serve", str(directory), "--port", "0", "release.probe=none.jsonl"]) == 2
    Registry.create(tmp_path / "empty")
    assert run(["serve", str(tmp_path / "empty"), "--port", "0"]) == 2
    assert "nothing was deployed" in capfd.readouterr().err
