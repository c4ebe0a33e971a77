"""What tests of serving share."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from starlette.types import ASGIApp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutti.serve.engine import End, Engine, Piece, Request, SlotModel
from tutti.serve.service import Service
from tutti.web.slow import protocol_with


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def tiny_service(*, slots: int = 2, queue_length: int = 3, context: int = 128) -> Service:
    """A model of two layers that reads and writes bytes, and says nothing that makes sense. Close its engine."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=context, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = SlotModel(LlamaForCausalLM(config).eval(), slots, context)
    engine = Engine(model, bytes_tokenizer(), end_tokens=set(), queue_length=queue_length)
    return _service(engine)


def render(messages: Any) -> str:
    """A talk as the models here have it."""
    return "".join(f"<{one['role']}>{one['content']}" for one in messages) + "<assistant>"


def turn(messages: Any) -> list[int]:
    """The same, as tokens."""
    ids: list[int] = bytes_tokenizer()(render(messages))["input_ids"]
    return ids


class Script:
    """In place of an engine: whatever is asked, it says `pieces`, one a token."""

    def __init__(self, pieces: Sequence[str], context: int = 1000) -> None:
        self.pieces, self.context, self.prompts = pieces, context, list[str]()
        self.problem, self.load, self.end_tokens = None, (0, 0), set[int]()
        self.cancelled = 0

    def submit(self, request: Request) -> None:
        self.prompts.append(bytes_tokenizer().decode(request.prompt))
        threading.Thread(target=self._say, args=(request,)).start()

    def _say(self, request: Request) -> None:
        for number, piece in enumerate(self.pieces):
            if request.cancelled:
                self.cancelled += 1
                request.deliver(End("cancelled", len(request.prompt), number))
                return
            request.deliver(Piece(piece, (0,)))
        request.deliver(End("stop", len(request.prompt), len(self.pieces)))


def scripted_service(pieces: Sequence[str]) -> Service:
    """It says `pieces`."""
    return _service(Script(pieces))


def _service(engine: Any) -> Service:
    return Service("tiny", engine, bytes_tokenizer(), turn, 1_700_000_000, vocabulary=256, most_texts=4)


@contextmanager
def served(app: ASGIApp, read_seconds: float = 20) -> Iterator[str]:
    """Where `app` answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=protocol_with(read_seconds), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
