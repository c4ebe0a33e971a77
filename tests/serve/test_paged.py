"""Models that do not go into slots, served by transformers' continuous batching: what they write is what `generate`
writes, and a request may ask for all that it may ask elsewhere."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

from served_models import bytes_tokenizer, served
from tutti.core.errors import ConfigError
from tutti.serve.engine import End, Full, Piece, Request, Sampling, SlotModel, Stopped, Unsupported
from tutti.serve.engine.paged import PagedEngine
from tutti.serve.http import make_app
from tutti.serve.load import Found
from tutti.serve.make import Settings, make_service
from tutti.serve.service import Service

KEY, CONTEXT = "sk-of-the-test", 96


def gemma() -> Any:
    """Every other layer looks back at 8 tokens only, and scores are capped."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=12, sliding_window=8, max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return model


def found(model: Any) -> Found:
    tokenizer = bytes_tokenizer()
    return Found("gemma", model, tokenizer, None, CONTEXT, set(), 256)


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    model, tokenizer = gemma(), bytes_tokenizer()
    model.set_attn_implementation("eager")
    found = {}
    for prompt in ("The house on the hill", "Grüße"):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        written = model.generate(ids, max_new_tokens=20, do_sample=False)[0][ids.shape[1] :]
        found[prompt] = str(tokenizer.decode(written))
    return found


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def service(said: list[str]) -> Iterator[Service]:
    settings = Settings(None, 2, None, 2, "as-they-are", most_texts=8)
    made = make_service(found(gemma()), settings, said.append)
    assert isinstance(made, Service)
    yield made
    made.close()
    assert made.problem == "the engine has stopped"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with served(make_app(service, KEY)) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


def test_it_is_what_is_left_where_slots_will_not_do(service: Service, said: list[str]) -> None:
    with pytest.raises(Unsupported):
        SlotModel(gemma(), 2, CONTEXT)
    assert isinstance(service.engine, PagedEngine) and service.problem is None
    assert "transformers' continuous batching" in said[-1]


def test_greedy_texts_are_those_of_generate(client: openai.OpenAI, expected: dict[str, str]) -> None:
    answer = client.completions.create(
        model="gemma", prompt=list(expected), max_tokens=20, temperature=0, n=2
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [text for text in expected.values() for _ in range(2)]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None and answer.usage.completion_tokens == 80


def test_a_stream_ends_at_a_stop_text(client: openai.OpenAI, expected: dict[str, str]) -> None:
    (prompt, text), *_ = expected.items()
    stop = text[8:10]
    stream = client.completions.create(
        model="gemma", prompt=prompt, max_tokens=20, temperature=0, stream=True, stop=stop
    )
    parts = [part.choices[0] for part in stream]
    assert "".join(part.text for part in parts) == text[: text.index(stop)]
    assert parts[-1].finish_reason == "stop"


def test_a_seed_a_schema_and_probabilities_mean_what_they_mean_elsewhere(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "gemma", "prompt": "a", "max_tokens": 12, "seed": 5}
    once, again = (client.completions.create(**asked).choices[0].text for _ in range(2))
    assert once == again != client.completions.create(**asked | {"seed": 6}).choices[0].text
    schema = {"enum": ["yes", "no"]}
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    choice = client.completions.create(**asked, extra_body={"response_format": format_}).choices[0]
    jsonschema_rs.validate(schema, json.loads(choice.text))
    assert choice.finish_reason == "stop"
    told = client.completions.create(**asked | {"temperature": 0}, logprobs=2).choices[0].logprobs
    assert told is not None and told.token_logprobs and told.top_logprobs
    for own, others in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert own == max(others.values())


def test_who_hangs_up_or_comes_too_late_is_let_go(service: Service) -> None:
    events: queue.Queue[Piece | End] = queue.Queue()
    gone = Request([1] * 4, 80, events.put, Sampling(temperature=0.0))
    service.engine.submit(gone)
    assert isinstance(events.get(timeout=20), Piece)
    gone.cancelled = True
    ends = []
    while not ends:
        event = events.get(timeout=20)
        ends += [event] if isinstance(event, End) else []
    assert ends[0].reason == "cancelled"
    service.engine.submit(Request([1] * 4, 80, events.put, deadline=0.0))
    while not isinstance(event := events.get(timeout=20), End):
        pass
    assert event.reason == "timeout" and events.empty()


def test_too_many_are_refused_and_the_others_served(service: Service) -> None:
    events: queue.Queue[Piece | End] = queue.Queue()
    taken = 0
    with pytest.raises(Full):
        for _ in range(50):
            service.engine.submit(Request([2] * 8, 60, events.put, Sampling(temperature=0.0)))
            taken += 1
    assert taken >= 4
    reasons = []
    while len(reasons) < taken:
        event = events.get(timeout=60)
        reasons += [event.reason] if isinstance(event, End) else []
    assert set(reasons) == {"length"}


def test_who_waits_when_it_ends_is_told() -> None:
    engine = PagedEngine(
        gemma(), bytes_tokenizer(), texts=1, context=CONTEXT, end_tokens=set(), queue_length=4
    )
    events: queue.Queue[Piece | End] = queue.Queue()
    for _ in range(3):
        engine.submit(Request([3] * 4, 90, events.put))
    engine.close()
    ends = []
    while len(ends) < 3:
        event = events.get(timeout=20)
        ends += [event.reason] if isinstance(event, End) else []
    assert set(ends) <= {"cancelled", "length"} and "cancelled" in ends
    with pytest.raises(Stopped):
        engine.submit(Request([3] * 4, 8, events.put))


def test_it_begins_again_when_transformers_breaks(expected: dict[str, str]) -> None:
    tokenizer = bytes_tokenizer()
    engine = PagedEngine(gemma(), tokenizer, texts=1, context=CONTEXT, end_tokens=set(), queue_length=1)
    events: queue.Queue[Piece | End] = queue.Queue()
    for _ in range(2):  # the second one waits
        engine.submit(Request([3] * 4, 90, events.put))
    engine._manager.stop(block=True, hard_stop=True)
    ends = []
    while len(ends) < 2:
        event = events.get(timeout=20)
        ends += [event.reason] if isinstance(event, End) else []
    assert ends == ["error", "error"]
    until = time.monotonic() + 20
    while engine.problem is not None:
        assert time.monotonic() < until
        time.sleep(0.05)
    (prompt, text), *_ = expected.items()
    for _ in range(2):  # and both places are free again
        engine.submit(Request(tokenizer(prompt)["input_ids"], 20, events.put, Sampling(temperature=0.0)))
    said, ends = "", []
    while len(ends) < 2:
        event = events.get(timeout=20)
        ends += [event.reason] if isinstance(event, End) else []
        said += event.text if isinstance(event, Piece) else ""
    assert (said, ends) == (text * 2, ["length", "length"])
    engine.close()


def test_what_nobody_can_serve_is_refused() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=256, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="MambaForCausalLM"):
        make_service(
            found(MambaForCausalLM(config)), Settings(None, 2, None, 2, "as-they-are"), lambda _: None
        )
