"""Models that do not write, asked over a socket: they say what other libraries say of them, and what `predict` says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from served_tasks import KEY, listening_at, make, open_task, write_task
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    pipeline,
)

from tutti.config.task import TaskConfig
from tutti.core.errors import ConfigError, ModelError, RunError
from tutti.models.onnx import OnnxModel, export_onnx
from tutti.models.quantized import save_quantized
from tutti.package import Asker, Package, open_package, write_package
from tutti.serve.asking import Asking
from tutti.serve.engine import AskerBackend
from tutti.serve.engine.onnx import tokens_per_second
from tutti.serve.kinds import KINDS
from tutti.serve.load import FoundAsker, load_any, set_weights
from tutti.tasks import Labels, RowEncoder, make_task

TEXTS = ["my card is lost", "where is the money that did not arrive", "exchange", "why is the fee so late?"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tasks")
    return {kind: write_task(place / kind, kind) for kind in ("classify", "tag", "answer", "embed")}


class Asked:
    """A service that runs, and what asks it."""

    def __init__(self, service: Asking, address: str) -> None:
        self.service, self.address = service, address
        self.http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    def post(self, route: str, **body: Any) -> Any:
        answer = self.http.post(route, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, route: str, **body: Any) -> tuple[int, str]:
        answer = self.http.post(route, json=body)
        return answer.status_code, answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def asked(places: dict[str, Path]) -> Iterator[dict[str, Asked]]:
    services = {kind: open_task(place) for kind, place in places.items()} | {"recommend": make(recommender())}
    with ExitStack() as stack:
        yield {
            kind: Asked(service, stack.enter_context(listening_at(service)))
            for kind, service in services.items()
        }


ITEMS = ("tea", "milk", "bread", "salt", "rice")


def recommender() -> FoundAsker:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=6,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else None
    task, labels = make_task(TaskConfig(kind="recommend")), Labels(ITEMS, (1,) * len(ITEMS))
    encoder = RowEncoder(Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), 8, pad=6, types=False)
    return FoundAsker("shop", Asker(task, labels, encoder, task.objective(model, labels)), in_onnx=False)


def test_labels_and_their_chances_are_those_of_transformers(
    asked: dict[str, Asked], places: dict[str, Path]
) -> None:
    answer = asked["classify"].post("/v1/classify", input=TEXTS)
    theirs = pipeline("text-classification", model=str(places["classify"]), top_k=None)
    assert answer["model"] == "classify" and [one["index"] for one in answer["data"]] == [0, 1, 2, 3]
    for ours, scores in zip(answer["data"], theirs(TEXTS), strict=True):
        assert ours["label"] == scores[0]["label"]
        assert ours["scores"] == pytest.approx({one["label"]: one["score"] for one in scores}, abs=1e-4)
    assert len({one["scores"]["late"] for one in answer["data"]}) == len(TEXTS)
    tokens = sum(len(theirs.tokenizer(text)["input_ids"]) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    (alone,) = asked["classify"].post("/v1/classify", model="classify", input=TEXTS[1])["data"]
    assert alone == answer["data"][1] | {"index": 0}
    (pair,) = asked["classify"].post("/v1/classify", input={"text": TEXTS[0], "pair": TEXTS[2]})["data"]
    (scores,) = theirs([{"text": TEXTS[0], "text_pair": TEXTS[2]}])
    assert pair["scores"] == pytest.approx({one["label"]: one["score"] for one in scores}, abs=1e-4)


def test_entities_are_those_of_transformers(asked: dict[str, Asked], places: dict[str, Path]) -> None:
    texts = ["Anna works for Acme Corp in New York 7", "bob visits paris, please"]
    said = asked["tag"].post("/v1/extract", input=texts)["data"]
    theirs = pipeline("token-classification", model=str(places["tag"]), aggregation_strategy="first")
    for text, ours in zip(texts, said, strict=True):
        assert ours["entities"]
        for one in ours["entities"]:
            assert one["text"] == text[one["start"] : one["end"]] and 0 < one["score"] <= 1
        letters = {(at, e["label"]) for e in ours["entities"] for at in range(e["start"], e["end"])}
        expected = {(at, e["entity_group"]) for e in theirs(text) for at in range(e["start"], e["end"])}
        assert {one for one in letters if text[one[0]] != " "} == {
            one for one in expected if text[one[0]] != " "
        }


def test_openai_s_client_gets_the_vectors_of_sentence_transformers(
    asked: dict[str, Asked], places: dict[str, Path]
) -> None:
    client = openai.OpenAI(base_url=f"{asked['embed'].address}/v1", api_key=KEY, max_retries=0)
    module = Transformer(str(places["embed"]))
    theirs = SentenceTransformer(modules=[module, Pooling(32), Normalize()], device="cpu")
    expected = theirs.encode(TEXTS)
    found = client.embeddings.create(model="embed", input=TEXTS)  # base64, unless one asks for numbers
    assert [one.index for one in found.data] == [0, 1, 2, 3] and found.usage.prompt_tokens > 20
    np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=2e-6)
    plain = client.embeddings.create(model="embed", input=TEXTS[0], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, expected[0], atol=2e-6)
    raw = asked["embed"].post("/v1/embeddings", input=TEXTS[0], encoding_format="base64")
    numbers = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(numbers, expected[0], atol=2e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions: this model was not trained"):
        client.embeddings.create(model="embed", input="x", dimensions=8)
    with pytest.raises(openai.BadRequestError, match="input"):
        client.embeddings.create(model="embed", input=[[1, 2, 3]])
    assert [one.id for one in client.models.list()] == ["embed"]


def test_an_answer_is_the_stretch_with_the_largest_sum(
    asked: dict[str, Asked], places: dict[str, Path]
) -> None:
    context = "anna visits paris and bob works in london for acme corp where the fee is wrong"
    tokenizer = AutoTokenizer.from_pretrained(places["answer"])
    model = AutoModelForQuestionAnswering.from_pretrained(places["answer"]).eval()
    read = tokenizer("who works?", context, return_offsets_mapping=True, return_tensors="pt")
    offsets, ours = read.pop("offset_mapping")[0].tolist(), read.sequence_ids(0)
    with torch.no_grad():
        found = model(**read)
    starts, ends = found.start_logits[0].tolist(), found.end_logits[0].tolist()
    places_of_text = [at for at, sequence in enumerate(ours) if sequence == 1]
    best = max(
        ((a, b) for a in places_of_text for b in places_of_text if a <= b < a + 30),
        key=lambda pair: starts[pair[0]] + ends[pair[1]],
    )
    start, end = offsets[best[0]][0], offsets[best[1]][1]
    (said,) = asked["answer"].post("/v1/answer", input={"question": "who works?", "context": context})["data"]
    assert (said["answer"], said["start"]) == (context[start:end], start)


def test_items_are_the_likeliest_that_were_not_had(asked: dict[str, Asked]) -> None:
    one = asked["recommend"]
    answer = one.post("/v1/recommend", input=["milk", "salt"], top=2)
    model: Any = one.service.asker.objective.model
    with torch.no_grad():
        logits = model(torch.tensor([[6, 1, 3]])).logits[0, -1, : len(ITEMS)].double().numpy()
    chances = np.exp(logits) / np.exp(logits).sum()
    best = sorted((at for at in (0, 2, 4)), key=lambda at: -chances[at])[:2]
    (said,) = answer["data"]
    assert [(line["item"], line["score"]) for line in said["items"]] == [
        (ITEMS[at], pytest.approx(chances[at], abs=1e-4)) for at in best
    ]
    several = one.post("/v1/recommend", input=[["milk", "salt"], [], ["nobody had this"]])["data"]
    assert several[0]["items"][:2] == said["items"] and [len(line["items"]) for line in several] == [3, 5, 5]


def test_they_are_told_what_predict_says(asked: dict[str, Asked]) -> None:
    """`tutti predict` prints what `Asker.predict` gives."""
    records: dict[str, list[Any]] = {
        "classify": TEXTS,
        "tag": [" ".join(TEXTS * 9), TEXTS[0]],  # more than a row
        "recommend": [{"items": ["milk", "tea"]}],
        "answer": [{"question": "who works?", "context": " ".join(TEXTS * 9)}],
    }
    for kind, some in records.items():
        service = asked[kind].service
        given = [one["items"] for one in some] if kind == "recommend" else some
        extra = {"top": 20} if kind == "recommend" else {}
        said = asked[kind].post(service.kind.routes[0], input=given, **extra)["data"]
        predicted = [{"index": at, **one} for at, one in enumerate(service.asker.predict(some))]
        assert said == json.loads(json.dumps(predicted))


def test_as_they_are_weights_say_the_same_in_any_company(asked: dict[str, Asked]) -> None:
    one = asked["embed"]
    alone = one.post("/v1/embeddings", input=TEXTS[0])["data"][0]["embedding"]
    crowd = [" ".join(TEXTS[at % 4] for at in range(n, n + 1 + n % 3)) for n in range(40)]
    beside = one.post("/v1/embeddings", input=[*crowd, TEXTS[0]])["data"][-1]["embedding"]
    np.testing.assert_allclose(beside, alone, atol=2e-6)


def test_onnxruntime_says_the_same_and_both_are_timed(
    asked: dict[str, Asked], places: dict[str, Path]
) -> None:
    native = asked["classify"].service.asker
    service = open_task(places["classify"], engine="onnx")
    service.close()
    assert isinstance(service.asker.objective.model, OnnxModel)
    for ours, theirs in zip(service.asker.predict(TEXTS), native.predict(TEXTS), strict=True):
        assert ours["label"] == theirs["label"] and ours["scores"] == pytest.approx(
            theirs["scores"], abs=2e-4
        )
    rows = native.read(service.examples(TEXTS))
    backends = [AskerBackend(native), AskerBackend(service.asker)]
    assert [backend.asker.pads for backend in backends] == [False, True]
    speeds = tokens_per_second(backends, [rows[at] for at in range(len(rows))])
    assert len(speeds) == 2 and min(speeds) > 0
    with pytest.raises(ConfigError, match="not in bf16"):
        open_task(places["classify"], engine="onnx", weights="bf16")


def test_whole_numbers_hardly_depend_on_their_company(places: dict[str, Path]) -> None:
    service = open_task(places["embed"], weights="int8")
    asker = service.asker
    (alone,) = asker.answer([asker.read(service.examples(TEXTS[:1]))[0]])
    rows = asker.read(service.examples(TEXTS))
    beside = asker.answer([rows[at] for at in range(4)])[0]
    service.close()
    exact = open_task(places["embed"])
    (true,) = exact.asker.answer([rows[0]])
    exact.close()
    assert 0 < np.abs(alone - beside).max() < 0.05 and true @ alone > 0.99


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_what_compress_wrote_is_served_as_it_is(places: dict[str, Path], tmp_path: Path, engine: Any) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(places["classify"])
    labels = tuple(model.config.id2label.values())
    task = TaskConfig(kind="classify")
    package = Package(engine, task, labels, (1, 1, 1), 64, True, recipe="int8", made_from={})
    tokenizer = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(places["classify"]).save_pretrained(tokenizer)
    ids = torch.arange(8).view(2, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids * 0}

    def save(path: Path) -> None:
        if engine == "onnx":
            export_onnx(model, inputs, path, int8=True)
            return
        set_weights(model, "int8")
        save_quantized(model, path)

    place = write_package(tmp_path / "packed", package, model.config, tokenizer, save)
    with listening_at(open_task(place, weights="auto", engine="auto")) as address:
        asked = {"input": TEXTS[0]}
        answer = httpx.post(f"{address}/v1/classify", json=asked, headers={"Authorization": f"Bearer {KEY}"})
    (predicted,) = open_package(place).predict(TEXTS[:1])
    assert answer.json()["data"] == [{"index": 0, **predicted}] and answer.json()["model"] == "packed"
    if engine == "onnx":
        with pytest.raises(ConfigError, match="is a package for onnxruntime"):
            open_task(place, engine="native")


@pytest.mark.parametrize(
    ("kind", "route", "body", "message"),
    [
        ("classify", "/v1/classify", {"input": " "}, "input 0: 'text' is empty"),
        ("classify", "/v1/classify", {"input": ["fine", ""]}, "input 1: 'text' is empty"),
        ("classify", "/v1/classify", {"input": []}, "input"),
        ("classify", "/v1/classify", {}, "input: Field required"),
        ("classify", "/v1/classify", {"input": "x", "top": 3}, "top: no such parameter"),
        ("tag", "/v1/extract", {"input": {"text": "x"}}, "input"),
        ("recommend", "/v1/recommend", {"input": "a|b"}, "input"),
        ("recommend", "/v1/recommend", {"input": [], "top": 21}, "top: "),
        ("answer", "/v1/answer", {"input": {"question": "x"}}, "context: Field required"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(
    asked: dict[str, Asked], kind: str, route: str, body: dict[str, Any], message: str
) -> None:
    status, said = asked[kind].refused(route, **body)
    assert status == 400 and message in said


@pytest.mark.parametrize("text", ["\u200b", "\0"])
def test_a_text_without_tokens_is_answered_too(asked: dict[str, Asked], text: str) -> None:
    for context in (text, "Anna came."):
        (said,) = asked["answer"].post("/v1/answer", input={"question": "Who?", "context": context})["data"]
        assert (said["start"] is None) == (context == text) == (said["answer"] == "")
    assert asked["tag"].post("/v1/extract", input=text)["data"] == [{"index": 0, "entities": []}]
    assert asked["tag"].post("/v1/explain", input=text)["data"] == []


def test_another_model_s_name_and_another_kind_s_route_are_refused(asked: dict[str, Asked]) -> None:
    for one in asked.values():
        kind = one.service.kind
        assert one.http.get("/v1/models").json()["data"][0]["kind"] == kind.name
        for route in {route for kind in KINDS for route in kind.routes} - set(kind.routes):
            status, said = one.refused(route, input="x")
            assert status == 404 and f"is {kind}: ask it at {kind.routes[0]}" in said, route
        assert one.refused(kind.routes[0], model="huge", input=["x"])[0] in (404, 400)
    assert asked["classify"].refused("/v1/classify", model="huge", input="x")[0] == 404
    assert httpx.post(f"{asked['classify'].address}/v1/classify", json={"input": "x"}).status_code == 401


def test_models_that_answer_to_nothing_here_are_refused(tmp_path: Path, places: dict[str, Path]) -> None:
    config = json.loads((places["embed"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ModelError, match="holds a BertForMaskedLM, which is not known to answer"):
        load_any(tmp_path)
    translator = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(translator))
    with pytest.raises(RunError, match="read one text and write another are not served"):
        load_any(tmp_path)
    by_first = write_task(tmp_path / "first", "embed")
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in parts]
    (by_first / "modules.json").write_text(json.dumps(listed))
    (by_first / "1_Pooling").mkdir()
    (by_first / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    with pytest.raises(ModelError, match="not by the mean over tokens"):
        load_any(by_first)
