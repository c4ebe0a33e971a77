"""Documents: read, cut and searched as the papers say; questions answered with what the answer was taken from."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from served_tasks import KEY, listening_at, open_task, write_task
from transformers import LlamaConfig, LlamaForCausalLM

from encoders import write_jsonl
from served_models import bytes_tokenizer, served, tiny_service
from tutti.config import ServiceConfig
from tutti.core.errors import ConfigError, DataError
from tutti.serve.answering import _ORDER, Answering
from tutti.serve.documents import Document, Library, Words, cut, fuse, read_folder
from tutti.serve.documents.passages import LONGEST
from tutti.serve.guard.keyring import Keyring, Quota
from tutti.serve.guard.layers import Guard
from tutti.serve.http import make_app
from tutti.serve.load import load_any
from tutti.serve.make import Settings, make_answering, make_service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "cards.md").write_text("# Cards\n\nA lost card is closed in the app.\n")
    (folder / "more").mkdir()
    (folder / "more" / "fees.txt").write_text(
        "\n\nThe fee of a transfer is two euro.\n\nExchange has no fee."
    )
    write_jsonl(
        folder / "faq.jsonl",
        [{"id": "faq.1", "text": "Bob works in London."}, {"text": "Anna visits Paris."}],
    )
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "empty.txt").write_text(" \n")
    return folder


def test_a_folder_is_read_as_documents(folder: Path, tmp_path: Path) -> None:
    assert [one.name for one in read_folder(folder)] == ["cards.md", "faq.1", "faq.jsonl:2", "more/fees.txt"]
    with pytest.raises(DataError, match="there is no folder"):
        read_folder(folder / "nothing")
    with pytest.raises(DataError, match="holds no documents"):
        read_folder(tmp_path)
    write_jsonl(tmp_path / "bad.jsonl", [{"text": "fine"}, {"title": "no text"}])
    with pytest.raises(DataError, match=r"bad\.jsonl:2 is no document: KeyError: 'text'"):
        read_folder(tmp_path)
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is no UTF-8"):
        read_folder(tmp_path)


def test_passages_hold_every_word_once_and_are_no_longer_than_they_may_be() -> None:
    dice = np.random.default_rng(0)
    texts = ["", "one", "  two \n\n  three  ", "x" * 2500]
    for _ in range(60):
        words = ["word" * int(n) for n in dice.integers(1, 6, dice.integers(1, 400))]
        gaps = dice.choice([" ", ". ", "\n", "\n\n", "\n \n"], len(words), p=[0.8, 0.1, 0.04, 0.04, 0.02])
        texts.append("".join(word + gap for word, gap in zip(words, gaps, strict=True)))
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    found = cut(documents)
    for number, text in enumerate(texts):
        own = [text[one.start : one.end] for one in found if one.document == number]
        assert "".join("".join(own).split()) == "".join(text.split())
        assert all(0 < len(one) <= LONGEST and one == one.strip() for one in own)
        assert sum(len(word) for one in own for word in one.split() if word) == len("".join(text.split()))
    assert [texts[2][one.start : one.end] for one in found if one.document == 2] == ["two \n\n  three"]


def test_a_long_paragraph_is_cut_where_a_sentence_ends() -> None:
    text = "This is a sentence. " * 120
    passages = [text[one.start : one.end] for one in cut([Document("x", text)])]
    assert len(passages) > 2 and all(one.startswith("This") and one.endswith(".") for one in passages)


def test_words_are_scored_as_bm25_has_it() -> None:
    """Lucene's form of it, k₁ = 1.5, b = 0.75, which is what bm25s takes by default."""
    texts = ["the lost card", "the fee of the card, the card!", "exchange", "名前は何ですか"]
    tokens = [
        ["the", "lost", "card"],
        ["the", "fee", "of", "the", "card", "the", "card"],
        ["exchange"],
        list("名前は何ですか"),
    ]
    mean = sum(map(len, tokens)) / len(tokens)

    def score(query: list[str], own: list[str]) -> float:
        total = 0.0
        for word in query:
            having = sum(word in some for some in tokens)
            count = Counter(own)[word]
            idf = math.log(1 + (len(tokens) - having + 0.5) / (having + 0.5))
            total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(own) / mean))
        return total

    index = Words(texts)
    for query in (["card"], ["the", "lost"], ["fee", "exchange"], ["名", "何"]):
        scores = [score(query, own) for own in tokens]
        expected = [at for at in sorted(range(4), key=lambda at: -scores[at]) if scores[at] > 0]
        assert index.best("".join(query) if len(query[0]) == 1 else " ".join(query), 9) == expected
    assert index.best("nobody said this", 5) == [] and index.best("CARD", 1) == [1]


def test_orders_are_fused_by_reciprocal_rank() -> None:
    fused = fuse([[4, 7, 1], [7, 2]])
    assert fused == [
        (7, pytest.approx(1 / 62 + 1 / 61)),
        (4, pytest.approx(1 / 61)),
        (2, pytest.approx(1 / 62)),
        (1, pytest.approx(1 / 63)),
    ]


def post(address: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(
        f"{address}/v1/answer", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    )
    assert answer.status_code == status, answer.text
    return answer.json()


def text_of(folder: Path, citation: dict[str, Any]) -> str:
    name = citation["document"]
    text = (folder / name).read_text() if (folder / name).is_file() else "Bob works in London."
    return text[citation["start"] : citation["end"]]


def test_an_answer_found_in_a_text_stands_where_it_is_said_to(folder: Path, tmp_path: Path) -> None:
    service = open_task(write_task(tmp_path / "answer", "answer"))
    with listening_at(service, Answering(service, Library(folder, None, lambda _: None))) as address:
        said = post(address, question="where is the lost card closed?", passages=2)
        assert said["model"] == "answer" and len(said["citations"]) == 2
        first = said["citations"][0]
        text = (folder / first["document"]).read_text()
        assert text[first["answer"]["start"] : first["answer"]["end"]] == said["answer"]
        assert said["score"] == max(one["answer_score"] for one in said["citations"])
        for one in said["citations"]:
            (predicted,) = service.asker.predict(
                [{"question": "where is the lost card closed?", "context": one["passage"]}]
            )
            assert one["answer"]["text"] == predicted["answer"]
            assert text_of(folder, one) == one["passage"]
        nothing = post(address, question="xyzzy")
        assert nothing["answer"] is None and nothing["citations"] == []
        assert "question: there is none" in post(address, 400, question=" ")["error"]["message"]
        assert "Field required" in post(address, 400, input="x")["error"]["message"]


def test_a_model_that_makes_vectors_finds_passages_by_words_and_vectors(folder: Path, tmp_path: Path) -> None:
    service = open_task(write_task(tmp_path / "embed", "embed"))
    said: list[str] = []
    answering = make_answering(service, _settings(documents=folder), said.append)
    assert said == ["documents: 4, in 4 passages; searched by words (BM25) and vectors"]
    with listening_at(service, answering) as address:
        found = post(address, question="Bob works in London.", passages=3)
        assert found["answer"] is None and len(found["citations"]) == 3
        assert found["citations"][0] | {"score": 0} == {
            "document": "faq.1", "start": 0, "end": 20, "passage": "Bob works in London.", "score": 0,
        }  # fmt: skip
        assert found["citations"][0]["score"] == pytest.approx(2 / 61, abs=1e-6)  # first in both orders
        models = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
        assert models["data"][0]["routes"] == ["/v1/embeddings", "/v1/answer"]


def test_a_model_that_writes_is_given_the_passages_that_there_is_room_for(
    folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=340, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    bytes_tokenizer().save_pretrained(tmp_path)
    settings = _settings(documents=folder)
    service = make_service(load_any(tmp_path), settings, lambda _: None)
    with listening_at(service, make_answering(service, settings, lambda _: None)) as address:
        said = post(address, question="What is the fee of a card?", passages=3, max_tokens=24)
        (only,) = said["citations"]  # two share a word with it, and one has room
        assert (only["document"], only["number"]) == ("more/fees.txt", 1)
        prompt = (
            f"[1] {only['passage']}\n\n"
            "Answer the question by what the passages say, in a few sentences, and name those "
            "that you used by their numbers, like [1]. If they do not say it, say that you do not know.\n\n"
            "Question: What is the fee of a card?\nAnswer:"
        )
        written = httpx.post(
            f"{address}/v1/completions",
            json={"prompt": prompt, "max_tokens": 24, "temperature": 0, "stop": "\nQuestion:"},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        ).json()
        assert said["answer"] == written["choices"][0]["text"].strip()
        assert said["usage"] == {k: written["usage"][k] for k in said["usage"]}
        assert "no room" in post(address, 400, question="fee? " * 99)["error"]["message"]


def test_what_a_key_has_asked_saves_no_other_key_time(folder: Path, tmp_path: Path) -> None:
    """Or how soon an answer comes would tell what was asked before."""
    ring = Keyring(tmp_path / "keys.json")
    keys = {name: ring.add(name, ["admin"], None, Quota()) for name in ("anna", "bob")}
    service = tiny_service(context=1024)
    answering = Answering(service, Library(folder, None, lambda _: None))
    app = make_app(service, Guard("unused", ServiceConfig(keys=str(ring.path))), answering)

    def ask(name: str, route: str, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {keys[name]}"}
        answer = httpx.post(address + route, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    with served(app) as address:
        question = "What is the fee of a card?"
        (only,) = ask("anna", "/v1/answer", question=question, passages=1, max_tokens=2)["citations"]
        talk = {
            "messages": [
                {"role": "user", "content": f"{_ORDER}\n\n[1] {only['passage']}\n\nQuestion: {question}"}
            ]
        }
        cached = [
            ask(name, "/v1/chat/completions", **talk, max_tokens=2)["usage"]["prompt_tokens_details"][
                "cached_tokens"
            ]
            for name in ("bob", "anna")
        ]
    service.close()
    assert cached[0] == 0 and cached[1] > len(_ORDER)


def _settings(**changes: Any) -> Settings:
    return Settings(None, 1, None, None, "as-they-are", "native", **changes)


def test_documents_are_for_models_that_can_answer(folder: Path, tmp_path: Path) -> None:
    service = open_task(write_task(tmp_path / "classify", "classify"))
    with pytest.raises(ConfigError, match="is a classifier, which answers no questions"):
        make_answering(service, _settings(documents=folder), lambda _: None)
    with pytest.raises(ConfigError, match="and there are none"):
        make_answering(service, _settings(embedder=tmp_path), lambda _: None)
    service.close()
    answerer = open_task(write_task(tmp_path / "answer", "answer"))
    with pytest.raises(ConfigError, match="makes no vectors of texts"):
        make_answering(answerer, _settings(documents=folder, embedder=tmp_path / "classify"), lambda _: None)
    embedder = write_task(tmp_path / "embed", "embed")
    answering = make_answering(answerer, _settings(documents=folder, embedder=embedder), lambda _: None)
    assert answering is not None
    with listening_at(answerer, answering) as address:
        found = post(address, question="Bob works in London.", passages=1)
        assert json.dumps(found["citations"][0]["passage"]) == '"Bob works in London."'
    answering.library.close()
