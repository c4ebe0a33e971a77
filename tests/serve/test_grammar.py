"""Answers that have to follow a schema do, by another program's judgement; and are the likeliest that do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from served_models import bytes_tokenizer, served
from tutti.serve.engine import Engine, Grammars, NoGrammar, SlotModel
from tutti.serve.engine.draw import Dice, draw
from tutti.serve.engine.grammar import rule_out
from tutti.serve.engine.request import Sampling
from tutti.serve.http import make_app
from tutti.serve.service import Service

KEY, CONTEXT = "sk-of-the-test", 256
FILED = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["card", "loan", "Grüße"]},
        "times": {"type": "integer", "minimum": 1, "maximum": 40},
        "said": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "of": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["kind", "times", "said", "tags", "of"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens of several letters, some of which JSON would part: `":`, `},`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    texts = [json.dumps({"kind": kind, "times": 12, "tags": [True, False]}) for kind in ("card", "loan")] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def service_with(tokenizer: PreTrainedTokenizerFast) -> Service:
    torch.manual_seed(0)
    count, end = len(tokenizer), tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=count + 8, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=end, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ends = set() if end is None else {end}
    engine = Engine(SlotModel(model, 3, CONTEXT), tokenizer, end_tokens=ends, queue_length=8)
    return Service("tiny", engine, tokenizer, None, 0, vocabulary=count + 8, most_texts=8)


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    made = service_with(bytes_tokenizer() if request.param == "bytes" else pieces_tokenizer())
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with served(make_app(service, KEY)) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


def following(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "filed", "schema": schema}}}


def test_every_answer_follows_the_schema_and_ends_when_it_is_whole(client: openai.OpenAI) -> None:
    valid = jsonschema_rs.validator_for(FILED)
    said = set()
    for seed in range(6):
        answer = client.completions.create(
            model="tiny", prompt="{}", max_tokens=240, seed=3 * seed, n=3, extra_body=following(FILED)
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop", choice.text
            valid.validate(json.loads(choice.text))
            said.add(choice.text)
    assert len(said) == 18  # each has a grammar of its own


def test_a_stream_follows_it_beside_one_that_is_free(client: openai.OpenAI) -> None:
    free: dict[str, Any] = {"model": "tiny", "prompt": "The", "max_tokens": 40, "seed": 3}
    alone = client.completions.create(**free).choices[0].text
    stream = client.completions.create(
        model="tiny", prompt="{}", max_tokens=240, seed=1, stream=True, extra_body=following(FILED)
    )
    parts = [next(stream)]
    beside = client.completions.create(**free).choices[0].text
    parts += list(stream)
    assert beside == alone
    jsonschema_rs.validate(FILED, json.loads("".join(part.choices[0].text for part in parts)))


def test_any_object_will_do_where_no_schema_is_given(client: openai.OpenAI) -> None:
    asked = {"response_format": {"type": "json_object"}}
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=240, seed=5, extra_body=asked)
    text = answer.choices[0].text
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    plain = client.completions.create(
        model="tiny",
        prompt="a",
        max_tokens=9,
        temperature=0,
        extra_body={"response_format": {"type": "text"}},
    )
    assert (
        plain.choices[0].text
        == client.completions.create(model="tiny", prompt="a", max_tokens=9, temperature=0).choices[0].text
    )


def test_what_has_no_room_says_so(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="{}", max_tokens=5, extra_body=following(FILED))
    assert answer.choices[0].finish_reason == "length"


def test_the_likeliest_token_that_may_come_is_taken(service: Service) -> None:
    """Of texts that can be counted: a token may come where one of them goes on with it."""
    allowed = [json.dumps(one) for one in ("card", "cart", "loan", "no")]
    grammar = service.grammars.json({"enum": ["card", "cart", "loan", "no"]})
    written, drawn = b"", torch.Generator().manual_seed(0)
    while not grammar.complete:
        logits = torch.randn(service.vocabulary, generator=drawn)
        may = [
            token
            for token in range(len(service.tokenizer))
            if token not in service.engine.end_tokens
            and any(one.encode().startswith(written + service.words.bytes_of(token)) for one in allowed)
        ]
        best = max(may, key=lambda token: float(logits[token]))
        before = logits.clone()
        (found,) = draw(rule_out(logits[None], [grammar]), [Sampling(temperature=0.0)], [Dice(0)])
        if len({service.words.bytes_of(token)[0] for token in may}) > 1:
            assert found == best
        assert found in may  # where the next letter is certain, in the tokens that the tokenizer would make
        assert torch.equal(logits, before)  # what is told of chances is the model's own
        grammar.take(found)
        written += service.words.bytes_of(found)
    assert written.decode() in allowed


def test_a_number_may_end_where_it_might_go_on(service: Service) -> None:
    grammar = service.grammars.json({"type": "integer"})
    for token in service.tokens_of("12"):
        grammar.take(token)
    assert not grammar.complete
    may = set(torch.nonzero(grammar.permitted(service.vocabulary)).flatten().tolist())
    assert service.engine.end_tokens <= may  # none, where the model has none
    said = {service.words.bytes_of(token) for token in may - service.engine.end_tokens}
    assert {b"%d" % digit for digit in range(10)} <= said and b"a" not in said


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "http://elsewhere.example/schema"}, "elsewhere"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    client: openai.OpenAI, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.completions.create(model="tiny", prompt="a", extra_body=following(schema))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "format_", [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_object", "schema": {}}, "json"]
)
def test_a_format_that_is_none_is_refused(client: openai.OpenAI, format_: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.completions.create(model="tiny", prompt="a", extra_body={"response_format": format_})


def test_a_schema_without_bottom_is_refused(client: openai.OpenAI) -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    answer = httpx.post(
        f"{client.base_url}completions",
        json={"model": "tiny", "prompt": "a", **following(deep)},
        headers={"Authorization": f"Bearer {KEY}"},
    )
    assert answer.status_code in (200, 400), answer.text


def test_a_tokenizer_of_another_kind_is_said_to_be_none() -> None:
    core = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(["[UNK]", "a", "b"])}, "[UNK]")
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    with pytest.raises(NoGrammar, match="tokenizer"):
        Grammars(tokenizer, 3, set()).json({"type": "object"})


def test_what_is_kept_compiled_is_nobody_elses(service: Service) -> None:
    schema = {"enum": ["yes", "no"]}
    first, second = (service.grammars.json(schema) for _ in range(2))
    for token in service.tokens_of('"yes"'):
        first.take(token)
    assert first.complete and not second.complete
    copies = [second.copy() for _ in range(2)]
    for copy, text in itertools.zip_longest(copies, ['"no"', '"yes"']):
        for token in service.tokens_of(text):
            copy.take(token)
    assert all(copy.complete and copy.problem is None for copy in copies)
