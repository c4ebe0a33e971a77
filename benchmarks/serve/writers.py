"""Programs that write texts, each in a process of its own, all asked for the same: prompts, and so many tokens more.

Every one draws the likeliest token and goes on where a text would end, so that all do the same work.
"""

from __future__ import annotations

import ctypes
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.serve.written import CONTEXT, Written
from tutti.serve.engine import End, Engine, Request, Sampling, SlotModel
from tutti.serve.load import Weights, cached_as, set_weights

#: Of a text: its prompt, and how many tokens to write.
Job = tuple[list[int], int]
#: Tokens of prompts that are read at once, everywhere where this can be said.
READING_TOKENS = 256


class Program(ABC):
    """`together`: texts at once."""

    def __init__(self, written: Written, together: int) -> None:
        self.written, self.together = written, together

    @abstractmethod
    def write(self, jobs: Sequence[Job]) -> int:
        """Do all `jobs`; how many tokens were written."""


class TuttiEngine(Program):
    """`tutti serve`'s engine, weights of 8 bits."""

    weights: Weights = "int8"

    def __init__(self, written: Written, together: int) -> None:
        super().__init__(written, together)
        model = written.load()
        set_weights(model, self.weights)
        self._engine = Engine(
            SlotModel(model, together, CONTEXT, cached_as(model)),
            written.tokenizer(),
            end_tokens=set(),
            queue_length=1000,
            reading_tokens=READING_TOKENS,
        )

    def write(self, jobs: Sequence[Job]) -> int:
        told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for prompt, count in jobs:
            self._engine.submit(Request(prompt, count, told.put, Sampling(temperature=0)))
        written = ended = 0
        while ended < len(jobs):
            event = told.get()
            if isinstance(event, End):
                ended += 1
                written += event.new_tokens
        return written


class TuttiEngineBf16(TuttiEngine):
    """The same, weights of 16 bits."""

    weights = "bf16"


class Generate(Program):
    """transformers' `generate`, bf16: as many texts as may be together are begun together, and the next ones when all
    have ended."""

    def __init__(self, written: Written, together: int) -> None:
        super().__init__(written, together)
        self._model = written.load(dtype=torch.bfloat16)

    def write(self, jobs: Sequence[Job]) -> int:
        with torch.inference_mode():
            for first in range(0, len(jobs), self.together):
                some = jobs[first : first + self.together]
                longest = max(len(prompt) for prompt, _ in some)
                ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in some])
                mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in some])
                most = max(count for _, count in some)
                self._model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=most,
                    min_new_tokens=most,
                    do_sample=False,
                    pad_token_id=0,
                )
        return sum(count for _, count in jobs)


class ContinuousBatching(Program):
    """transformers' continuous batching, bf16."""

    def __init__(self, written: Written, together: int) -> None:
        super().__init__(written, together)
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self._model = written.load(dtype=torch.bfloat16, attn_implementation="paged|sdpa")
        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=CONTEXT)
        sizes = ContinuousBatchingConfig(
            max_batch_tokens=max(READING_TOKENS, together),
            num_blocks=together * CONTEXT // 256,
            block_size=256,
        )
        self._manager = self._model.init_continuous_batching(
            generation_config=config, continuous_batching_config=sizes
        )
        self._manager.start()

    def write(self, jobs: Sequence[Job]) -> int:
        for prompt, count in jobs:
            self._manager.add_request(prompt, max_new_tokens=count)
        written = ended = 0
        while ended < len(jobs):
            if (result := self._manager.get_result(timeout=1)) is None:
                continue
            if result.error:
                raise RuntimeError(result.error)
            if result.is_finished():
                ended += 1
                written += len(result.generated_tokens)
        return written


class LlamaCpp(Program):
    """llama.cpp, q8_0, through its batch of sequences: a token for everybody who writes, prompts as they come."""

    def __init__(self, written: Written, together: int) -> None:
        super().__init__(written, together)
        import llama_cpp as ll

        self._ll = ll
        ll.llama_backend_init()
        self._silent = ll.llama_log_callback(lambda level, text, data: None)  # called for as long as it lives
        ll.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._model = ll.llama_model_load_from_file(
            str(written.gguf).encode(), ll.llama_model_default_params()
        )
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = CONTEXT * together
        parameters.n_seq_max = together
        parameters.n_batch = parameters.n_ubatch = READING_TOKENS + together
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        self._context = ll.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self._batch = ll.llama_batch_init(READING_TOKENS + together, 0, 1)
        self._vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self._model))

    def write(self, jobs: Sequence[Job]) -> int:
        ll, batch = self._ll, self._batch
        memory = ll.llama_get_memory(self._context)
        waiting = list(jobs)
        slots: list[_Sequence | None] = [None] * self.together
        written = 0
        while waiting or any(slots):
            for number, slot in enumerate(slots):
                if slot is None and waiting:
                    prompt, count = waiting.pop(0)
                    ll.llama_memory_seq_rm(memory, number, -1, -1)
                    slots[number] = _Sequence(list(prompt), 0, len(prompt) + count)
            batch.n_tokens = 0
            left, drawing = READING_TOKENS, list[tuple[int, int]]()
            for number, slot in enumerate(slots):
                if slot is None:
                    continue
                several = len(slot.tokens) - slot.read
                take = 1 if several == 1 else min(several, left)
                left -= take if several > 1 else 0
                for _ in range(take):
                    at = batch.n_tokens
                    batch.token[at], batch.pos[at] = slot.tokens[slot.read], slot.read
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                    slot.read += 1
                    batch.logits[at] = slot.read == len(slot.tokens)
                    batch.n_tokens += 1
                if take and slot.read == len(slot.tokens):
                    drawing.append((number, batch.n_tokens - 1))
            if ll.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama.cpp could not decode")
            for number, at in drawing:
                slot = slots[number]
                assert slot is not None
                logits = torch.frombuffer(
                    ctypes.cast(
                        ll.llama_get_logits_ith(self._context, at),
                        ctypes.POINTER(ctypes.c_float * self._vocabulary),
                    ).contents,
                    dtype=torch.float32,
                )
                slot.tokens.append(int(logits.argmax()))
                written += 1
                if len(slot.tokens) >= slot.ends:
                    slots[number] = None
        return written


@dataclass
class _Sequence:
    """`read`: tokens that are in the cache; `ends`: at so many tokens."""

    tokens: list[int]
    read: int
    ends: int


PROGRAMS: dict[str, type[Program]] = {
    "tutti int8": TuttiEngine,
    "tutti bf16": TuttiEngineBf16,
    "generate bf16": Generate,
    "continuous batching bf16": ContinuousBatching,
    "llama.cpp q8_0": LlamaCpp,
}


class Contestant:
    """A program in its process, with `threads` cores."""

    def __init__(self, name: str, written: Written, together: int, threads: int) -> None:
        here, there = get_context("spawn").Pipe()
        self._pipe = here
        self._process = get_context("spawn").Process(
            target=_work, args=(there, name, written, together, threads), daemon=True
        )
        self._process.start()
        there.close()
        self.problem: str | None = self._answer()

    def write(self, jobs: Sequence[Job]) -> tuple[float, float]:
        """Tokens a second, and a second of processor time."""
        self._pipe.send(list(jobs))
        found = self._answer()
        if isinstance(found, str):
            raise RuntimeError(found)
        tokens, wall, cpu = found
        assert tokens == sum(count for _, count in jobs), f"{tokens} tokens were written"
        return tokens / wall, tokens / cpu

    def end(self) -> None:
        """Free what it holds."""
        self._process.terminate()
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return f"its process ended with {self._process.exitcode}"


def _work(pipe: Connection, name: str, written: Written, together: int, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        program = PROGRAMS[name](written, together)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    pipe.send(None)
    while True:
        try:
            jobs = pipe.recv()
        except EOFError:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = program.write(jobs)
        pipe.send((tokens, time.perf_counter() - wall, time.process_time() - cpu))
