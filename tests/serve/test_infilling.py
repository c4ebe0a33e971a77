"""`suffix` of a completion, and of `tutti generate`: the model is given what PSM says, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tokenizers import AddedToken, processors
from transformers import LlamaConfig, LlamaForCausalLM

from served_models import bytes_tokenizer, served, tiny_service
from tutti import api
from tutti.config import load_config
from tutti.core import ModelError
from tutti.core.infilling import OWN
from tutti.models import generate
from tutti.serve.engine import Engine, SlotModel
from tutti.serve.http import make_app
from tutti.serve.service import Service

KEY = "sk-of-the-test"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return made


def with_marks() -> Any:
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in OWN])
    return tokenizer


def told(prefix: str, suffix: str) -> list[int]:
    ids = bytes_tokenizer()
    return [256, *ids(prefix)["input_ids"], 257, *ids(suffix)["input_ids"], 258]


def written(model: Any, ids: list[int], count: int) -> str:
    model.set_attn_implementation("eager")
    output = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)[0]
    return str(with_marks().decode(output[len(ids) :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def client(model: Any) -> Iterator[openai.OpenAI]:
    engine = Engine(SlotModel(model, 2, 128), with_marks(), end_tokens=set(), queue_length=3)
    service = Service("tiny", engine, with_marks(), None, 1_700_000_000, vocabulary=259, most_texts=4)
    with served(make_app(service, KEY)) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    engine.close()


def test_a_suffix_is_what_comes_behind(model: Any, client: openai.OpenAI) -> None:
    ids = told("def f(", "):\n    return größe")
    expected = written(model, ids, 12)
    asked: dict[str, Any] = {"model": "tiny", "prompt": "def f(", "max_tokens": 12, "temperature": 0}
    answer = client.completions.create(suffix="):\n    return größe", **asked)
    assert answer.choices[0].text == expected != written(model, bytes_tokenizer()("def f(")["input_ids"], 12)
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    assert generate(model, with_marks(), ["def f("], 12, temperature=0, suffix="):\n    return größe") == [
        expected
    ]
    plain = client.completions.create(**asked)
    assert client.completions.create(suffix="", **asked).choices[0].text == plain.choices[0].text


def test_prompts_begin_as_their_tokenizer_begins_texts(model: Any) -> None:
    tokenizer = with_marks()
    tokenizer.add_special_tokens({"bos_token": "!"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A", special_tokens=[("!", begin)]
    )
    engine = Engine(SlotModel(model, 2, 128), tokenizer, end_tokens=set(), queue_length=3)
    service = Service("tiny", engine, tokenizer, None, 1_700_000_000, vocabulary=259, most_texts=4)
    ids, between = [begin, *bytes_tokenizer()("def f(")["input_ids"]], [begin, *told("def f(", "):")]
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    with served(make_app(service, KEY)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        for given in ("def f(", ids):  # tokens are taken as they are
            answer = client.completions.create(prompt=given, **asked)
            assert answer.choices[0].text == written(model, ids, 12) != written(model, ids[1:], 12)
            assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
            filled = client.completions.create(prompt=given, suffix="):", **asked)
            assert filled.choices[0].text == written(model, between, 12)
    engine.close()


def test_a_model_without_marks_says_so() -> None:
    service = tiny_service()
    with served(make_app(service, KEY)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        with pytest.raises(openai.BadRequestError, match="has no marks for text to be filled in") as refused:
            client.completions.create(model="tiny", prompt="a", suffix="b")
        assert refused.value.param == "suffix"
    service.close()


def test_a_run_learns_to_fill_in(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"({a}{b} is {a} then {b})" for a in "abcdefgh" for b in "abcdefgh") * 20)
    words = [
        *("name=fill", f"runs={tmp_path}", f"data.source={text}", f"data.cache={tmp_path / 'cache'}"),
        *("data.tokenizer=characters", "data.sequence=64", "model=100K", "replicas=1", "train.steps=30"),
        *("task={kind: language_model, infill: 0.5}", "train.batch=8", "train.precision=fp32"),
    ]
    report = api.train(load_config(None, words), console=False)
    run = tmp_path / "fill"
    assert report["state"] == "finished" and report["validation_bits_per_byte"] > 0
    (filled,) = api.generate(run, ["(ab is "], new_tokens=8, temperature=0, suffix=" then b)")
    assert isinstance(filled, str) and not any(mark in filled for mark in OWN)
    with pytest.raises(ModelError, match="has no marks"):
        generate(LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=1)), bytes_tokenizer(),
                 ["a"], 2, suffix="b")  # fmt: skip
