"""Texts served together, in any order, are those of `transformers.generate` alone."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tutti.serve.engine import End, Engine, Full, Piece, Request, Sampling, SlotModel, Stopped, Unsupported
from tutti.serve.engine.draw import Dice, draw

_USUAL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {**_USUAL, "num_key_value_heads": 2},
    "qwen3": {**_USUAL, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": _USUAL,
    "mistral": {**_USUAL, "num_key_value_heads": 2},
}
VOCABULARY, CONTEXT = 97, 96
GREEDY = Sampling(temperature=0)


class Letters:
    """A tokenizer whose token is a letter."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(chr(0x4E00 + token) for token in tokens)


def make(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **SIZES[kind], **more)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():  # far from ties, so that rounding changes no token
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return model


@contextmanager
def running(model: Any, slots: int = 2, **more: Any) -> Iterator[Engine]:
    usual: dict[str, Any] = {"end_tokens": set(), "queue_length": 9}
    engine = Engine(SlotModel(model, slots, CONTEXT), Letters(), **usual | more)
    try:
        yield engine
    finally:
        engine.close()


class Asked:
    """A request and what came of it."""

    def __init__(self, prompt: list[int], new_tokens: int, **rest: Any) -> None:
        self.got: queue.Queue[Piece | End] = queue.Queue()
        self.request = Request(prompt, new_tokens, self.got.put, **({"sampling": GREEDY} | rest))

    def wait(self) -> tuple[list[int], End]:
        """The tokens and the end."""
        tokens: list[int] = []
        self.likely: list[Any] = []
        self.text = ""
        while True:
            found = self.got.get(timeout=60)
            if isinstance(found, End):
                assert self.got.empty()
                return tokens, found
            tokens += found.tokens
            self.likely += found.likely
            self.text += found.text


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_greedy_texts_are_those_of_generate(kind: str) -> None:
    model = make(kind)
    asked = [(prompt, 5 + 3 * (number % 4)) for number, prompt in enumerate(prompts(9))]
    expected = []
    for prompt, count in asked:
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)[0]
        expected.append(whole[len(prompt) :].tolist())
    with running(model, slots=3, reading_tokens=16) as engine:
        waiting = []
        for prompt, count in asked:
            waiting.append(Asked(prompt, count))
            engine.submit(waiting[-1].request)
            time.sleep(0.01)  # some come while others are read or written
        for one, (prompt, count), tokens in zip(waiting, asked, expected, strict=True):
            found, end = one.wait()
            assert found == tokens
            assert (end.reason, end.prompt_tokens, end.new_tokens) == ("length", len(prompt), count)


@pytest.fixture(scope="module")
def model() -> Any:
    return make("llama")


def test_slots_far_apart_write_as_neighbours_do(model: Any) -> None:
    long, short = prompts(2)
    alone = Asked(long, 30)
    with running(model, slots=6) as engine:
        engine.submit(alone.request)
        expected, _ = alone.wait()
    with running(model, slots=6) as engine:
        asked = [Asked(short, 2) for _ in range(4)] + [Asked(long, 30), Asked(short, 2)]
        for one in asked:
            engine.submit(one.request)
        assert asked[4].wait()[0] == expected


def test_what_another_request_has_read_is_not_read_again(model: Any) -> None:
    common = prompts(1, 30)[0] * 3
    other_end = [*common[:-2], 5, 6, 7]
    with running(model) as engine:
        fresh = Asked(other_end, 4)
        engine.submit(fresh.request)
        expected, end = fresh.wait()
        assert end.cached_tokens == 0
    with running(model) as engine:
        first = Asked(common, 4)
        engine.submit(first.request)
        written, _ = first.wait()
        going_on = Asked([*common, *written, 8], 4)
        engine.submit(going_on.request)
        # In the same slot, all that the first has left: its last token was never read.
        assert going_on.wait()[1].cached_tokens == len(common) + 3
        engine.submit(Asked(going_on.request.prompt, 20).request)
        beside = Asked(other_end, 4)
        engine.submit(beside.request)  # copied from the slot that is being written in
        tokens, end = beside.wait()
        assert (tokens, end.cached_tokens) == (expected, len(common) - 2)


def test_a_seed_is_of_one_text_whatever_its_company(model: Any) -> None:
    warm = Sampling(temperature=1.5, seed=4)
    prompt, other = prompts(2)
    texts = []
    for company in (0, 3):
        with running(model, slots=4) as engine:
            for number in range(company):
                engine.submit(Asked(other, 30, sampling=Sampling(seed=number)).request)
            one = Asked(prompt, 20, sampling=warm)
            engine.submit(one.request)
            texts.append(one.wait()[0])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=3),
        Sampling(top_p=0.6),
        Sampling(temperature=2.0, top_k=20, top_p=0.5),
    ],
    ids=["temperature", "top_k", "top_p", "all"],
)
def test_tokens_are_drawn_as_often_as_transformers_would(sampling: Sampling) -> None:
    logits = 2 * torch.randn(1, 30, generator=torch.Generator().manual_seed(3))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits.clone())[0].softmax(-1)
    rows, dice = 20_000, Dice(5)
    found = Counter(draw(logits.expand(rows, -1), [sampling] * rows, [dice] * rows))
    shares = torch.tensor([found[token] / rows for token in range(30)])
    assert (shares[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / rows).sqrt()
    assert ((shares - expected).abs() <= 5 * deviation + 1e-9).all()


def test_what_might_have_been_is_told_with_its_probability(model: Any) -> None:
    prompt = prompts(1)[0]
    with running(model) as engine:
        one = Asked(prompt, 4, sampling=Sampling(temperature=0, logprobs=3))
        engine.submit(one.request)
        tokens, _ = one.wait()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        logs = model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert len(one.likely) == 4
    for row, token, told in zip(logs, tokens, one.likely, strict=True):
        top = row.topk(3)
        assert [which.token for which in told] == [token, *top.indices.tolist()]
        values = torch.tensor([which.logprob for which in told])
        torch.testing.assert_close(values, torch.cat([row[token][None], top.values]), atol=1e-4, rtol=1e-4)


def test_a_stop_text_ends_it_and_is_not_part_of_it(model: Any) -> None:
    prompt = prompts(1)[0]
    with running(model) as engine:
        free = Asked(prompt, 20)
        engine.submit(free.request)
        tokens, _ = free.wait()
        stop = free.text[7:9]
        stopped = Asked(prompt, 20, stop=("no such text", stop))
        engine.submit(stopped.request)
        _, end = stopped.wait()
    assert (stopped.text, end.reason) == (free.text[: free.text.index(stop)], "stop")
    with running(model, end_tokens={tokens[5]}) as engine:
        ended = Asked(prompt, 20)
        engine.submit(ended.request)
        found, end = ended.wait()
    first = tokens.index(tokens[5])
    assert (found, end.reason, end.new_tokens) == (tokens[:first], "stop", first + 1)


def test_who_goes_away_or_waits_too_long_makes_room(model: Any) -> None:
    prompt = prompts(1)[0]
    with running(model, slots=1) as engine:
        writing = Asked(prompt, CONTEXT - len(prompt))
        engine.submit(writing.request)
        writing.got.get(timeout=60)
        late, gone, after = (
            Asked(prompt, 5, deadline=time.monotonic() - 1),
            Asked(prompt, 5),
            Asked(prompt, 5),
        )
        gone.request.cancelled = writing.request.cancelled = True
        engine.submit(late.request)
        engine.submit(gone.request)
        assert (late.wait()[1].reason, gone.wait()[1].reason) == ("timeout", "cancelled")
        assert writing.wait()[1].reason == "cancelled"
        engine.submit(after.request)
        assert after.wait()[1].reason == "length"
        assert engine.load == (0, 0)


@pytest.mark.parametrize(("slots", "waiting"), [(2, 0), (3, 1)])
def test_nobody_is_refused_while_a_slot_is_free(model: Any, slots: int, waiting: int) -> None:
    with running(model, slots=slots, queue_length=waiting) as engine:
        for _ in range(2):  # as soon as one has ended another may come
            asked = [Asked(prompt, 20) for prompt in prompts(slots + waiting)]
            go_on = threading.Event()
            heard = asked[0].request.deliver

            def slowly(event: Piece | End, go_on: Any = go_on, heard: Any = heard) -> None:
                assert go_on.wait(60)  # nobody is through before all have asked
                heard(event)

            asked[0].request.deliver = slowly
            for one in asked:
                engine.submit(one.request)
            with pytest.raises(Full):
                engine.submit(Asked(prompts(1)[0], 20).request)
            go_on.set()
            assert all(one.wait()[1].reason == "length" for one in asked)
            while engine.load != (0, 0):
                time.sleep(0.01)


def test_more_than_may_wait_is_refused_at_once(model: Any) -> None:
    prompt = prompts(1)[0]
    with running(model, slots=1, queue_length=2) as engine:
        asked = []
        with pytest.raises(Full):
            for _ in range(10):
                asked.append(Asked(prompt, 20))
                engine.submit(asked[-1].request)
        assert 3 <= len(asked) <= 5
        assert all(one.wait()[1].reason == "length" for one in asked[:-1])
        with pytest.raises(ValueError, match=f"has {CONTEXT} tokens"):
            engine.submit(Asked([1] * CONTEXT, 5).request)


def test_when_it_breaks_everybody_is_told_and_it_begins_again(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the disk is on fire")

    with running(model, slots=1) as engine:
        before = Asked(prompts(1)[0], 20)
        engine.submit(before.request)
        tokens, _ = before.wait()
        asked = [Asked(prompts(1)[0], 20) for _ in range(2)]
        monkeypatch.setattr(engine._model, "run", broken)
        for one in asked:
            engine.submit(one.request)
        for one in asked:
            end = one.wait()[1]
            assert (end.reason, end.problem) == ("error", "RuntimeError: the disk is on fire")
        assert engine.problem == "the engine has stopped, and begins again"
        with pytest.raises(Stopped):
            engine.submit(asked[0].request)
        monkeypatch.undo()
        until = time.monotonic() + 20
        while engine.problem is not None and time.monotonic() < until:
            time.sleep(0.05)
        assert engine.load == (0, 0)
        again = Asked(prompts(1)[0], 20)
        engine.submit(again.request)
        assert again.wait()[0] == tokens


def test_an_architecture_with_attention_of_its_own_is_refused() -> None:
    config = AutoConfig.for_model("bloom", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(Unsupported, match="BloomForCausalLM"):
        SlotModel(AutoModelForCausalLM.from_config(config), 2, CONTEXT)
    with pytest.raises(Unsupported, match="kind of attention"):
        SlotModel(make("mistral", sliding_window=8), 2, CONTEXT)
