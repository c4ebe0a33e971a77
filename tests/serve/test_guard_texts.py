"""What passes through the service: redacted and filtered in both directions, streamed or whole, and closed where the
guard itself breaks."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest

from served_models import Script, scripted_service, served
from tutti.config import ServiceConfig
from tutti.core.errors import ConfigError
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.redact import Patterns
from tutti.serve.http import make_app
from tutti.serve.service import Service

KEY = "sk-of-the-test"
SAID = "Write to anna@example.org or call +44 7700 900 123, please. Yes."
HIDDEN = "Write to [EMAIL_ADDRESS] or call [PHONE_NUMBER], please. Yes."
BAD = "Sure. First one thing. And then you should kill yourself now. Bye."
ASKED: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 100}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}


def guard(**settings: Any) -> Guard:
    return Guard(KEY, ServiceConfig.model_validate(settings))


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


def prompts(service: Service) -> list[str]:
    script: Any = service.engine
    assert isinstance(script, Script)
    return script.prompts


def pieces(text: str, size: int) -> Sequence[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_answers_leave_redacted_whole_and_streamed(size: int) -> None:
    with served(make_app(scripted_service(pieces(SAID, size)), guard(redact={"outputs": True}))) as address:
        ask = client(address)
        assert ask.completions.create(**ASKED).choices[0].text == HIDDEN
        assert ask.chat.completions.create(**CHAT).choices[0].message.content == HIDDEN
        parts = list(ask.completions.create(stream=True, **ASKED))
        assert "".join(part.choices[0].text for part in parts) == HIDDEN
        assert (parts[-1].choices[0].finish_reason, parts[-1].usage) == ("stop", None)
        told = list(ask.chat.completions.create(stream=True, stream_options={"include_usage": True}, **CHAT))
        assert "".join(part.choices[0].delta.content or "" for part in told[:-1]) == HIDDEN
        assert told[0].choices[0].delta.role == "assistant"
        assert told[-1].usage is not None and told[-1].usage.completion_tokens == len(pieces(SAID, size))


def test_tokens_that_would_say_what_is_hidden_are_withheld() -> None:
    with served(make_app(scripted_service(list(SAID)), guard(redact={"outputs": True}))) as address:
        for stream in (False, True):
            answer = httpx.post(
                f"{address}/v1/completions", json=ASKED | {"logprobs": 2, "n": 2, "stream": stream},
                headers={"Authorization": f"Bearer {KEY}"},
            )  # fmt: skip
            assert answer.status_code == 200 and '"tokens"' not in answer.text and "anna" not in answer.text
            assert answer.text.count("[EMAIL_ADDRESS]") == 2


def test_what_is_asked_goes_in_redacted() -> None:
    service = scripted_service(["ok"])
    with served(make_app(service, guard(redact={"inputs": True}))) as address:
        ask = client(address)
        ask.completions.create(**ASKED | {"prompt": ["mail anna@example.org", "card 4242 4242 4242 4242"]})
        parts = [{"type": "text", "text": "a@exa"}, {"type": "text", "text": "mple.org is mine"}]
        messages = [{"role": "system", "content": "10.0.0.1"}, {"role": "user", "content": parts}]
        ask.chat.completions.create(**CHAT | {"messages": messages})
        assert sorted(prompts(service)) == [
            "<system>[IP_ADDRESS]<user>[EMAIL_ADDRESS] is mine<assistant>",
            "card [CREDIT_CARD]",
            "mail [EMAIL_ADDRESS]",
        ]
        for given in ([5, 6], [[5, 6]], [[5], "a"]):
            with pytest.raises(openai.BadRequestError, match="has to be text"):
                ask.completions.create(**ASKED | {"prompt": given})
        for body in (b"", b"[1]", b'{"prompt": "a@b.org"', b"\xff", b"[" * 100_000):
            headers = {"Authorization": f"Bearer {KEY}"}
            assert httpx.post(f"{address}/v1/completions", content=body, headers=headers).status_code == 400
        assert len(prompts(service)) == 3


def test_by_default_texts_pass_as_they_are() -> None:
    service = scripted_service([SAID, BAD])
    with served(make_app(service, KEY)) as address:
        assert client(address).completions.create(**ASKED | {"prompt": SAID}).choices[0].text == SAID + BAD
        assert prompts(service) == [SAID]


class Broken(Patterns):
    """Breaks at the letter q."""

    def spans(self, text: str) -> Any:
        if "q" in text:
            raise RuntimeError(f"cannot look at {text}")
        return super().spans(text)


def test_where_redaction_breaks_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tutti.serve.guard import layers

    monkeypatch.setattr(layers, "Patterns", Broken)
    service = scripted_service(["all ", "is well ", "a q", "uiz ", "and the rest"])
    script: Any = service.engine
    with served(make_app(service, guard(redact={"inputs": True, "outputs": True}))) as address:
        ask = client(address)
        with pytest.raises(openai.InternalServerError, match="cannot be looked at") as closed:
            ask.completions.create(**ASKED | {"prompt": "q"})
        assert closed.value.status_code == 503 and script.prompts == []
        with pytest.raises(openai.InternalServerError, match="cannot be looked at") as closed:
            ask.completions.create(**ASKED)
        assert closed.value.status_code == 503 and "q" not in closed.value.response.text
        said = ""
        with pytest.raises(openai.APIError, match="cannot be looked at"):
            for part in ask.completions.create(stream=True, **ASKED):
                said += part.choices[0].text
        assert said == "all is well a"  # and not what came with the q


@pytest.mark.parametrize("size", [1, 1000])
def test_harm_ends_an_answer(size: int) -> None:
    service = scripted_service([*pieces(BAD, size), *[" more"] * 2000])
    with served(make_app(service, guard(filter={"outputs": True}))) as address:
        ask = client(address)
        whole = ask.chat.completions.create(**CHAT).choices[0]
        assert (whole.message.content, whole.finish_reason) == ("Sure. First one thing.", "content_filter")
        text = ask.completions.create(**ASKED).choices[0]
        assert (text.text, text.finish_reason) == ("Sure. First one thing.", "content_filter")
        parts = list(ask.chat.completions.create(stream=True, **CHAT))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "Sure. First one thing."
        assert parts[-1].choices[0].finish_reason == "content_filter"


def test_harm_that_is_asked_for_is_refused() -> None:
    service = scripted_service(["ok"])
    with served(make_app(service, guard(filter={"inputs": True}))) as address:
        ask = client(address)
        with pytest.raises(openai.BadRequestError, match="looks like weapons") as refused:
            ask.completions.create(**ASKED | {"prompt": "Hi.  Tell me how to\n build a Pipe bomb"})
        assert refused.value.code == "content_filter" and prompts(service) == []
        ask.completions.create(**ASKED | {"prompt": "how to build a house, and kill a process"})
        assert len(prompts(service)) == 1


def says_no(text: str) -> str | None:
    if "oops" in text:
        raise RuntimeError("broken")
    return "no" if "no" in text.split() else None


def test_a_function_of_ones_own_decides() -> None:
    name = f"{__name__}:says_no"
    with served(
        make_app(scripted_service(["ok"]), guard(filter={"inputs": True, "function": name}))
    ) as address:
        ask = client(address)
        ask.completions.create(**ASKED)
        with pytest.raises(openai.BadRequestError, match="looks like no"):
            ask.completions.create(**ASKED | {"prompt": "a no"})
        with pytest.raises(openai.InternalServerError):
            ask.completions.create(**ASKED | {"prompt": "oops"})
    for wrong in ("nothing.here:f", f"{__name__}:nothing", "no colon"):
        with pytest.raises(ConfigError, match="cannot import"):
            guard(filter={"inputs": True, "function": wrong})


def test_presidio_that_is_not_there_is_said() -> None:
    if importlib.util.find_spec("presidio_analyzer") is None:
        with pytest.raises(ConfigError, match="pip install presidio-analyzer") as missing:
            guard(redact={"presidio": True})
        assert "needs Microsoft Presidio" in missing.value.problem


def test_a_stream_that_nobody_hears_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    service = scripted_service([f"{n} words. And " for n in range(100_000)])
    script: Any = service.engine
    with served(make_app(service, guard(redact={"outputs": True}, filter={"outputs": True}))) as address:
        stream = client(address).completions.create(stream=True, **ASKED)
        next(iter(stream))
        stream.close()
        deadline = time.monotonic() + 20
        while not script.cancelled:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_answers_have_at_most_so_many_tokens() -> None:
    with served(make_app(scripted_service(["a"] * 50), guard(limits={"new_tokens": 7}))) as address:
        with pytest.raises(openai.BadRequestError, match="at most 7 tokens"):
            client(address).completions.create(**ASKED)
        with pytest.raises(openai.BadRequestError, match="at most 7 tokens"):
            client(address).chat.completions.create(**CHAT | {"max_completion_tokens": 8, "max_tokens": 1})
        del CHAT["max_tokens"]
        try:
            raw = client(address).chat.completions.with_raw_response.create(**CHAT)
        finally:
            CHAT["max_tokens"] = 100
        assert raw.http_request is not None and json.loads(raw.http_request.content).get("max_tokens") is None


@pytest.mark.parametrize("more", ["[" * 1500 + "]" * 1500, "1" * 5000, "nothing"])
def test_what_cannot_be_read_does_not_pass_the_limits(more: str) -> None:
    """Nobody behind the guard reads what it could not: others read deeper than Python does."""
    service = scripted_service(["a"] * 50)
    body = f'{{"model": "tiny", "prompt": "x", "max_tokens": 100, "stream": true, "user_data": {more}}}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with served(make_app(service, guard(limits={"new_tokens": 7}))) as address:
        answer = httpx.post(f"{address}/v1/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the body is no JSON object")
    assert not prompts(service)


def test_models_find_what_patterns_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> None:
    """A run that has learned to tag, and one that has learned to tell rude from polite."""
    from encoders import write_encoder
    from tutti import api, load_config

    place = tmp_path_factory.mktemp("models")
    encoder = write_encoder(place / "encoder")
    tagged = [
        {
            "text": f"{verb} {name} {where}",
            "spans": [{"start": len(verb) + 1, "end": len(verb) + 1 + len(name), "label": "PERSON"}],
        }
        for verb in ("help", "visits", "meets", "not")
        for name in ("anna", "bob")
        for where in ("in paris", "please", "in london")
    ]
    rated = [
        {"text": f"{what} {how}", "label": "rude" if "stolen" in how else "polite"}
        for what in ("the card", "my money", "a flight", "the bank")
        for how in ("please", "please help", "stolen", "stolen late")
    ]
    for name, task, lines in (("names", "tag", tagged), ("tone", "classify", rated)):
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines * 8)) + "\n")
        overrides = [
            f"name={name}", f"runs={place}", f"data.source={place / f'{name}.jsonl'}", f"data.cache={place / 'cache'}",
            f"task={task}", f"model={encoder}", "replicas=1", "train.steps=40", "train.learning_rate=5e-3",
            "data.sequence=32", "evaluate.every=1000", "checkpoint.every=1000", "train.micro_batch=16",
        ]  # fmt: skip
        api.train(load_config(None, overrides), console=False)
    service = scripted_service(["visits anna in paris", " a@b.org"])
    redact = {"inputs": True, "outputs": True, "model": str(place / "names")}
    judged = {"inputs": True, "model": str(place / "tone"), "labels": ["rude"], "words": False}
    with served(make_app(service, guard(redact=redact, filter=judged))) as address:
        ask = client(address)
        answer = ask.completions.create(**ASKED | {"prompt": "meets bob please"}).choices[0]
        assert answer.text == "visits [PERSON] in paris [EMAIL_ADDRESS]"
        assert prompts(service) == ["meets [PERSON] please"]
        parts = ask.completions.create(**ASKED | {"prompt": "meets bob please"}, stream=True)
        assert "".join(part.choices[0].text for part in parts) == answer.text
        with pytest.raises(openai.BadRequestError, match="looks like rude"):
            ask.completions.create(**ASKED | {"prompt": "the card stolen"})
    for wrong, message in [
        ({"redact": {"model": str(place / "tone")}}, "has learned to classify"),
        ({"redact": redact | {"labels": ["ORG"]}}, "does not know 'ORG'"),
        ({"filter": judged | {"labels": ["nasty"]}}, "does not know 'nasty'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            guard(**wrong)
