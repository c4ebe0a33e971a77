"""The service, asked by OpenAI's own client over a socket; what it writes is what `transformers.generate` writes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from served_models import bytes_tokenizer, render, turn
from tutti.serve.engine import Engine, SlotModel
from tutti.serve.engine import thread as engine_thread
from tutti.serve.http import make_app
from tutti.serve.service import Service

KEY, CONTEXT = "sk-of-the-test", 128


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return made


@pytest.fixture(scope="module")
def expected(model: Any) -> Any:
    """What `generate` writes to texts."""
    tokenizer = bytes_tokenizer()

    def write(prompt: str, count: int) -> str:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        model.set_attn_implementation("eager")
        return str(
            tokenizer.decode(model.generate(ids, max_new_tokens=count, do_sample=False)[0][ids.shape[1] :])
        )

    return {
        (prompt, count): write(prompt, count)
        for prompt, count in [
            ("The house", 20),
            ("Grüße", 12),
            (render([{"role": "user", "content": "Hallo"}]), 24),
        ]
    }


@pytest.fixture(scope="module")
def service(model: Any, expected: Any) -> Iterator[Service]:
    engine = Engine(SlotModel(model, 2, CONTEXT), bytes_tokenizer(), end_tokens=set(), queue_length=3)
    yield Service("tiny", engine, bytes_tokenizer(), turn, 1_700_000_000, vocabulary=256, most_texts=4)
    engine.close()


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service, KEY), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


def test_a_completion_is_what_generate_writes(client: openai.OpenAI, expected: Any) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").created == 1_700_000_000
    for prompt, count in [("The house", 20), ("Grüße", 12)]:
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=count, temperature=0)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (
            expected[prompt, count],
            "length",
        )
        assert answer.usage is not None
        used = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
        assert used == (len(prompt.encode()), count, len(prompt.encode()) + count)
    several = client.completions.create(model="tiny", prompt=["The house"] * 2, max_tokens=20, temperature=0)
    assert [choice.text for choice in several.choices] == [expected["The house", 20]] * 2


def test_a_stream_is_the_same_piece_by_piece(client: openai.OpenAI, expected: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "The house", "max_tokens": 20, "temperature": 0}
    parts = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    assert "".join(part.choices[0].text for part in parts if part.choices) == expected["The house", 20]
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].usage is not None and parts[-1].usage.completion_tokens == 20
    assert len({part.id for part in parts}) == 1


def test_a_conversation_is_answered(client: openai.OpenAI, expected: Any) -> None:
    text = next(text for (prompt, _), text in expected.items() if prompt.startswith("<user>"))
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hallo"}],
        "temperature": 0,
    }
    answer = client.chat.completions.create(max_completion_tokens=24, **asked)
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", text)
    parts = list(client.chat.completions.create(max_tokens=24, stream=True, **asked))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    assert parts[-1].choices[0].finish_reason == "length"
    stopped = client.chat.completions.create(max_tokens=24, stop=text[3:5], **asked)
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        text[: text.index(text[3:5])],
        "stop",
    )
    in_parts = [{"type": "text", "text": "Hal"}, {"type": "text", "text": "lo"}]
    asked["messages"] = [{"role": "user", "content": in_parts}]
    assert client.chat.completions.create(max_tokens=24, **asked).choices[0].message.content == text


def test_probabilities_are_those_of_the_model(client: openai.OpenAI, model: Any) -> None:
    tokenizer = bytes_tokenizer()
    found = client.completions.create(model="tiny", prompt="abc", max_tokens=3, temperature=0, logprobs=2)
    told = found.choices[0].logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs
    ids: list[int] = list(tokenizer("abc")["input_ids"])
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        with torch.no_grad(), _eager(model):
            logs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = logs.topk(2)
        assert logprob == pytest.approx(float(best.values[0]), abs=1e-4)
        assert sorted(top.values()) == pytest.approx(sorted(best.values.tolist()), abs=1e-4)
        ids.append(int(best.indices[0]))
        byte = {letter: place for place, letter in bytes_to_unicode().items()}[
            tokenizer.convert_ids_to_tokens(ids[-1])
        ]
        assert token == (chr(byte) if byte < 128 else f"bytes:\\x{byte:02x}")
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=2, logprobs=True, top_logprobs=3
    )
    lines = chat.choices[0].logprobs
    assert lines is not None and lines.content is not None
    assert [len(line.top_logprobs) for line in lines.content] == [3, 3]


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation(before)


def test_tokens_stand_where_they_stand_in_the_text(client: openai.OpenAI, model: Any) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": "The",
        "max_tokens": 60,
        "logprobs": 0,
        "seed": 3,
        "n": 2,
    }
    whole = client.completions.create(**asked)
    parts: dict[int, list[int]] = {0: [], 1: []}
    for part in client.completions.create(**asked, stream=True):
        for one in part.choices:
            parts[one.index] += (one.logprobs and one.logprobs.text_offset) or []
    for choice in whole.choices:
        assert choice.logprobs is not None and choice.logprobs.tokens and choice.logprobs.text_offset
        offsets = choice.logprobs.text_offset
        assert parts[choice.index] == offsets == sorted(offsets) and offsets[0] == 0
        assert len(offsets) == 60 and offsets[-1] < len(choice.text)
        assert any(word.startswith("bytes:") for word in choice.logprobs.tokens)
        for word, at in zip(choice.logprobs.tokens, offsets, strict=True):
            assert word.startswith("bytes:") or choice.text.startswith(word, at)


def test_answers_to_one_seed_differ_among_each_other_and_come_again(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(
            model="tiny", prompt="x", max_tokens=12, temperature=1.5, seed=3, n=3
        )
        return [choice.text for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3 and ask() == first


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "huge"}, openai.NotFoundError, "there is no model 'huge'"),
        ({"prompt": "x" * CONTEXT}, openai.BadRequestError, "sees 128 tokens"),
        ({"prompt": ""}, openai.BadRequestError, "the prompt is empty"),
        ({"prompt": [5, 300]}, openai.BadRequestError, "from 0 to 255"),
        ({"temperature": 3}, openai.BadRequestError, "temperature: "),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens: "),
        ({"presence_penalty": 1.0}, openai.BadRequestError, "presence_penalty: "),
        ({"n": 9}, openai.BadRequestError, "at most 4 texts"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature: no such parameter"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_by_name(
    client: openai.OpenAI, changes: dict[str, Any], kind: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        client.completions.create(**{"model": "tiny", "prompt": "x", "max_tokens": 1} | changes)


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("completions", {"prompt": "\ud800"}),
        ("completions", {"prompt": ["a", "\ud800"]}),
        ("completions", {"prompt": "a", "suffix": "\udfff"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}),
    ],
)
def test_half_a_letter_is_no_text(address: str, route: str, asked: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    answer = httpx.post(f"{address}/v1/{route}", content=json.dumps(asked), headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["param"], answer.text


def test_nobody_without_the_key_gets_anything(address: str) -> None:
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="sk-guessed", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="not known"):
        stranger.models.list()
    routes = httpx.get(f"{address}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()["paths"]
    for path in [*routes, "/openapi.json", "/docs", "/nothing"]:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            status = httpx.request(method, f"{address}{path}").status_code
            assert status == 401 or (path in ("/health", "/ready") and status in (200, 405)), (method, path)


def test_too_many_are_told_to_come_again_and_the_others_are_served(
    client: openai.OpenAI, service: Service
) -> None:
    def ask() -> Any:
        try:
            return (
                client.completions.create(model="tiny", prompt="x", max_tokens=100).choices[0].finish_reason
            )
        except openai.RateLimitError as error:
            assert error.response.headers["Retry-After"] == "1"
            return "refused"

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ask())) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12 and set(found) == {"length", "refused"}
    assert service.engine.load == (0, 0)


def test_who_hangs_up_is_not_written_for_any_more(client: openai.OpenAI, service: Service) -> None:
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=100, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).completions.create(model="tiny", prompt="x" * 27, max_tokens=100)
    deadline = time.monotonic() + 20
    while service.engine.load != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_that_is_dead_or_wedged_is_no_healthy_service(
    address: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    engine = Engine(SlotModel(model, 1, CONTEXT), bytes_tokenizer(), end_tokens=set(), queue_length=1)
    dead = Service("tiny", engine, bytes_tokenizer(), None, 0, vocabulary=256, most_texts=4)
    assert dead.problem is None
    monkeypatch.setattr(engine_thread, "_WEDGED_SECONDS", 0.5)
    held = threading.Event()
    monkeypatch.setattr(engine, "_round", lambda: held.wait(20))
    until = time.monotonic() + 10
    while dead.problem is None and time.monotonic() < until:
        time.sleep(0.05)
    assert dead.problem and "has not come round" in dead.problem
    held.set()
    engine.close()
    assert dead.problem == "the engine has stopped"
