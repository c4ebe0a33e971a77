"""What leaves of others' answers: streams in every form that the standard allows, tools that are called, thoughts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from tutti.config.service import LimitsConfig, ServiceConfig
from tutti.serve.guard.answered import Answered
from tutti.serve.guard.asked import bounded, texts_of, writes
from tutti.serve.guard.exchange import Exchange
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.redact import Patterns
from tutti.serve.guard.texts import Way
from tutti.serve.refusal import Refusal

SECRET, HIDDEN = "anna@example.org", "[EMAIL_ADDRESS]"
OPEN, CLOSED = Way(), Way(Patterns())


def answered(way: Way, route: str = "/v1/chat/completions") -> Answered:
    return Answered(way, Exchange("1", "POST", route), usage=False, texts=1)


def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "token_ids": [1, 2]}
    return json.dumps({"id": "x", "choices": [choice], "prompt_token_ids": [3]})


def told(out: bytes) -> list[dict[str, Any]]:
    """The deltas in a stream that left."""
    lines = [line for line in out.decode().split("\n\n") if line.startswith("data: {")]
    return [one["delta"] for line in lines for one in json.loads(line.removeprefix("data: "))["choices"]]


@pytest.mark.parametrize("way", [OPEN, CLOSED], ids=["open", "closed"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_may_be_written_as_the_standard_has_it(way: Way, end: str, size: int) -> None:
    events = [
        [":"],
        [f"data:{chunk({'role': 'assistant', 'content': ''})}"],
        [": still there", "event: message", "id: 7", f"data: {chunk({'content': 'Hello '})}"],
        [f"data: {chunk({'content': 'you'}, 'stop')}"],
        ["data: [DONE]"],
    ]
    stream = "".join(end.join(lines) + end + end for lines in events).encode()
    passing, out = answered(way), b""
    for start in range(0, len(stream), size):
        out += passing.part(stream[start : start + size])
    out += passing.part(b"", last=True)
    assert "".join(delta.get("content") or "" for delta in told(out)) == "Hello you"
    assert out.endswith(b"data: [DONE]\n\n") and out.startswith(b":\n\n")


def test_a_stream_whose_last_event_is_not_ended_is_told() -> None:
    out = answered(CLOSED).part(f"data: {chunk({'content': 'all'}, 'stop')}".encode(), last=True)
    assert told(out) == [{"content": "all"}]


def test_what_is_thought_and_given_to_tools_is_redacted_too() -> None:
    passing = answered(CLOSED)
    parts = [
        {"role": "assistant", "content": None, "reasoning_content": "write to anna@exa"},
        {"reasoning_content": "mple.org "},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "send", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"to": "anna@'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'example.org"}'}}]},
    ]  # fmt: skip
    out = b"".join(passing.part(f"data: {chunk(delta)}\n\n".encode()) for delta in parts)
    out += passing.part(f"data: {chunk({}, 'tool_calls')}\n\n".encode())
    assert SECRET.encode() not in out and b"token_ids" not in out
    deltas = told(out)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == f"write to {HIDDEN} "
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0]["id"] == "c" and calls[0]["function"]["name"] == "send"
    assert "".join(call["function"].get("arguments", "") for call in calls) == f'{{"to": "{HIDDEN}"}}'
    message = {
        "role": "assistant", "content": None, "reasoning_content": SECRET,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "send", "arguments": SECRET}}],
    }  # fmt: skip
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "token_ids": [1]}
    body = {"id": "x", "choices": [choice], "prompt_logprobs": [{"5": {"decoded_token": "a"}}]}
    whole = json.loads(answered(CLOSED).whole(json.dumps(body).encode()))
    assert SECRET not in str(whole) and whole["choices"][0]["message"]["content"] is None
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "send",
        "arguments": HIDDEN,
    }
    assert set(whole) == {"id", "choices"} and "token_ids" not in whole["choices"][0]
    assert json.loads(answered(OPEN).whole(json.dumps(body).encode())) == body


def test_what_a_model_writes_from_documents_is_judged() -> None:
    class Never:
        slow = False

        def harm(self, text: str) -> str | None:
            return "harm" if "bad" in text else None

    body = {"object": "answer", "answer": "Good. Then bad.", "citations": [{"text": "bad"}]}
    passing = answered(Way(None, (Never(),)), "/v1/answer")
    whole = json.loads(passing.whole(json.dumps(body).encode()))
    assert whole["finish_reason"] == "content_filter" and "bad" not in whole["answer"]
    with pytest.raises(Refusal, match="looks like harm"):
        answered(Way(None, (Never(),))).whole(b"<html>bad</html>")


@pytest.mark.parametrize(
    ("route", "asked", "most"),
    [
        ("/v1/chat/completions", {}, 100),
        ("/v1/completions", {}, 16),
        ("/v1/answer", {"question": "who?"}, 100),
        ("/v1/completions", {"max_tokens": 7}, 7),
    ],
)
def test_an_answer_is_bounded_where_nothing_is_said(route: str, asked: dict[str, Any], most: int) -> None:
    assert writes(asked, route)
    assert bounded(asked, 100, route)["max_tokens"] == most
    assert bounded(asked, None, route) == asked


@pytest.mark.parametrize(
    "asked", [{"max_tokens": -1}, {"max_tokens": "5"}, {"max_tokens": 101}, {"max_tokens": True}, {"n_predict": 5}]
)  # fmt: skip
def test_bounds_that_others_would_not_keep_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        bounded(asked, 100, "/v1/chat/completions")
    assert not writes({"input": "x"}, "/v1/answer") and not writes({}, "/v1/classify")


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [5, 6, 7], "n": 2}, 2),
        ({"prompt": [[5], [6]]}, 2),
        ({"messages": [], "n": 4}, 4),
        ({"messages": [], "n": "4"}, 1),
    ],
)
def test_answers_are_counted(asked: dict[str, Any], texts: int) -> None:
    assert texts_of(asked) == texts


def test_texts_are_bounded_before_whatever_serves() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"choices": []})(scope, receive, send)

    settings = ServiceConfig(limits=LimitsConfig(texts=2))
    client = TestClient(
        Guard("sk-key", settings).around(application), headers={"Authorization": "Bearer sk-key"}
    )
    for n, status in ((2, 200), (3, 400)):
        got = client.post("/v1/chat/completions", json={"messages": [], "n": n})
        assert got.status_code == status
    assert got.json()["error"] == got.json()["error"] | {"param": "n"} and "at most 2" in got.text
