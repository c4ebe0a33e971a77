"""`tutti serve` as a process: OpenAI's client, a key that is told once, and an end that loses nothing."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from commands import started
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from encoders import write_encoder, write_intents
from served_models import bytes_tokenizer
from tutti import api
from tutti.config import load_config
from tutti.core.errors import ConfigError, LaunchError, ModelError, RunError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a model that talks."""
    place = tmp_path_factory.mktemp("serve") / "parrot"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    tokenizer.save_pretrained(place)
    return place


def test_it_answers_in_whole_numbers_and_ends_when_all_is_answered(model: Path) -> None:
    with started(model.parent, "serve", "parrot", "--port", "0", "--slots", "2") as command:
        said = _wait_for(command, "-d '")
        found = re.search(r"at (http://127.0.0.1:\d+)/v1.*key, for this time: (\S+)", said, re.DOTALL)
        assert found is not None and "weights: int8" in said, said
        client = openai.OpenAI(base_url=f"{found[1]}/v1", api_key=found[2], max_retries=0)
        asked: dict[str, Any] = {"model": "parrot", "messages": [{"role": "user", "content": "Hello"}]}
        text = client.chat.completions.create(max_tokens=8, temperature=0, **asked).choices[0].message.content
        assert text == _expected(model)
        ends: list[Any] = []

        def listen() -> None:
            parts = list(client.chat.completions.create(max_tokens=1500, stream=True, **asked))
            ends.append(parts[-1].choices[0].finish_reason)

        thread = threading.Thread(target=listen)
        thread.start()
        time.sleep(0.3)
        command.process.send_signal(signal.SIGTERM)
        answer = command.end(120)
        thread.join(60)
    assert (answer.code, ends) == (0, ["length"]), answer.said


def _expected(model: Path) -> str:
    """By transformers, with the same whole numbers."""
    from tutti.serve.load import load_model, set_weights

    found = load_model(model)
    set_weights(found.model, "int8")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor([tokenizer("<user>Hello<assistant>")["input_ids"]])
    network: Any = found.model
    return str(tokenizer.decode(network.generate(ids, max_new_tokens=8, do_sample=False)[0][ids.shape[1] :]))


def _wait_for(command: Any, text: str) -> str:
    deadline = time.monotonic() + 120
    while text not in (said := command.out + command.err):
        assert command.process.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.1)
    return str(said)


def test_what_cannot_be_served_is_said_before_anything_listens(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would travel in the clear"):
        api.serve(model, host="0.0.0.0")
    with pytest.raises(ConfigError, match="belong together"):
        api.serve(model, tls_key=tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="there is no file"):
        api.serve(model, tls_key=tmp_path / "key.pem", tls_certificate=tmp_path / "certificate.pem")
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(LaunchError, match="cannot listen at"),
    ):
        api.serve(model, port=other.getsockname()[1])
    with pytest.raises(ConfigError, match=r"did you mean 'limits\.body_bytes'"):
        api.serve(model, overrides=["limits.body_byte=3"])
    with pytest.raises(ConfigError, match="there is no file of keys"):
        api.serve(model, port=0, overrides=[f"keys={tmp_path / 'keys.json'}"])
    with pytest.raises(RunError, match="no run"):
        api.serve(tmp_path / "nothing", port=0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        api.serve(tmp_path / "broken", port=0)


@pytest.mark.slow
def test_a_model_that_labels_is_served_and_says_what_predict_says(tmp_path: Path) -> None:
    run = _trained(tmp_path)
    with started(
        tmp_path, "serve", str(run), "--port", "0", "--weights", "as-they-are", "--engine", "native"
    ) as command:
        said = _wait_for(command, "-d '")
        found = re.search(r"at (http://127.0.0.1:\d+)/v1.*key, for this time: (\S+)", said, re.DOTALL)
        assert found is not None and "/v1/classify" in said, said
        client = httpx.Client(base_url=found[1], headers={"Authorization": f"Bearer {found[2]}"})
        texts = ["my card is lost", "exchange the money"]
        data = client.post("/v1/classify", json={"input": texts}).json()["data"]
        command.process.send_signal(signal.SIGTERM)
        assert command.end(120).code == 0
    assert data == [{"index": at, **one} for at, one in enumerate(api.predict(run, texts))]


def _trained(place: Path) -> Path:
    write_encoder(place / "bert")
    words = [f"data.source={write_intents(place)}", f"data.cache={place / 'cache'}", "data.sequence=32"]
    words += ["name=intents", f"runs={place / 'runs'}", "task=classify", f"model={place / 'bert'}"]
    words += ["replicas=1", "train.steps=20", "train.precision=fp32", "train.learning_rate=3e-3"]
    api.train(load_config(None, words), console=False)
    return place / "runs" / "intents"
