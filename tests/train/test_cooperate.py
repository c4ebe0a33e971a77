"""What groups tell each other and learn from it, over a real board in one process, against plain autograd."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tutti.config.agreement import CooperateConfig
from tutti.core import Batch
from tutti.sync.board import Board
from tutti.sync.channel import new_secret
from tutti.sync.postbox import Postbox
from tutti.tasks import CausalLanguageModelling
from tutti.train.cooperate.exchange import Exchange
from tutti.train.cooperate.letters import keys_of, letter_bytes, read_letter, write_letter
from tutti.train.cooperate.predictions import PredictionsOfOthers
from tutti.train.cooperate.weights import WeightsOfOthers, read_weights, write_weights

V, S, IGNORED = 40, 10, -100
CPU = torch.device("cpu")


def llama(seed: int, width: int = 16) -> CausalLanguageModelling:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=1, intermediate_size=32, num_attention_heads=2
    )
    return CausalLanguageModelling(LlamaForCausalLM(config)).train()


def gpt2(seed: int) -> CausalLanguageModelling:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return CausalLanguageModelling(GPT2LMHeadModel(config)).train()


def batch_of(samples: list[int]) -> Batch:
    rows = [torch.randint(V, (S + 1,), generator=torch.Generator().manual_seed(n)) for n in samples]
    ids = torch.stack(rows)
    labels = ids[:, 1:].clone()
    labels[:, 3] = IGNORED
    return {"input_ids": ids[:, :-1], "labels": labels, "position_ids": torch.arange(S).repeat(len(rows), 1)}


def settings(exchange: str, **changes: Any) -> CooperateConfig:
    values = {"every": 2, "burn_in": 0, "weight": 0.7, "temperature": 1.5, "top": 5, "max_age": 8}
    return CooperateConfig.model_validate({"exchange": exchange} | values | changes)


@pytest.fixture
def secret() -> bytes:
    return new_secret()


@pytest.fixture
def board(secret: bytes) -> Iterator[Board]:
    with closing(Board(secret)) as board:
        yield board


@pytest.fixture
def postboxes(board: Board, secret: bytes) -> Iterator[list[Postbox]]:
    postboxes = [Postbox(board.port, secret, group, 0) for group in range(3)]
    yield postboxes
    for postbox in postboxes:
        postbox.close()


def hear(exchange: Exchange, messages: int) -> None:
    deadline = time.monotonic() + 30
    while messages:
        assert time.monotonic() < deadline
        for message in exchange._postbox.collect():
            exchange.hear(message)
            messages -= 1
        time.sleep(0.01)


def predictions(postbox: Postbox, **changes: Any) -> PredictionsOfOthers:
    return PredictionsOfOthers(
        settings("predictions", **changes), postbox, CPU, groups=3, vocabulary=V, speaks=True
    )


def train_on(
    objective: CausalLanguageModelling, exchange: Exchange, step: int, batches: list[Batch]
) -> float:
    """A step's forward and backward; the sum of its loss."""
    exchange.step = step
    exchange.forget()
    objective.term = exchange
    objective.zero_grad()
    total = 0.0
    for batch in batches:
        value = objective(batch).total
        value.backward()
        total += float(value.detach())
    exchange.say(objective, leads=True)
    return total


def whole_logits(objective: CausalLanguageModelling, batch: Batch) -> Tensor:
    model: Any = objective.model
    logits: Tensor = model(input_ids=batch["input_ids"]).logits
    return logits


def coarse_kl(student: Tensor, teacher: Tensor, top: int, temperature: float) -> Tensor:
    """T² KL over the teacher's `top` likeliest tokens and "another one", for each row; float64, from the equation."""
    q, p = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    values, ids = q.topk(top)
    values = values.half().to(q.dtype)  # as they travel
    p_known = p.gather(-1, ids)
    inside = (values * (values / p_known).log()).sum(-1)
    q_rest, p_rest = 1 - values.sum(-1), 1 - p_known.sum(-1)
    return temperature**2 * (inside + q_rest * (q_rest / p_rest).log())


def test_what_was_computed_elsewhere_is_learnt_without_another_pass(postboxes: list[Postbox]) -> None:
    """Group 0 learns from groups 1 and 2, which computed some of its samples, in other batches and another order."""
    objectives = [llama(0), llama(1), gpt2(2)]
    exchanges = [predictions(postbox) for postbox in postboxes]
    train_on(objectives[1], exchanges[1], 1, [batch_of([3, 9]), batch_of([1])])
    train_on(objectives[2], exchanges[2], 1, [batch_of([1, 2, 8])])
    hear(exchanges[0], 2)
    batch = batch_of([1, 2, 3, 4])
    student = whole_logits(objectives[0], batch).double()
    with torch.no_grad():
        theirs = [whole_logits(objective, batch).double() for objective in objectives[1:]]
    kl = [coarse_kl(student, logits, 5, 1.5) for logits in theirs]
    apart = torch.stack([(kl[0][0] + kl[1][0]) / 2, kl[1][1], kl[0][2], torch.zeros(S, dtype=torch.float64)])
    targets = batch["labels"] != IGNORED
    loss = F.cross_entropy(student[targets], batch["labels"][targets], reduction="sum")
    expected = loss + 0.7 * apart[targets].sum()
    objectives[0].zero_grad()
    expected.backward()
    wanted = [p.grad.clone() for p in objectives[0].parameters() if p.grad is not None]
    for batches in ([batch], [batch_of([1]), batch_of([2, 3]), batch_of([4])]):
        total = train_on(objectives[0], exchanges[0], 2, batches)
        assert total == pytest.approx(float(expected), rel=1e-4)
        assert objectives[0].added() == pytest.approx(0.7 * float(apart[targets].sum()), rel=2e-3)
        got = [p.grad for p in objectives[0].parameters() if p.grad is not None]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    noted = exchanges[0].collect()
    assert noted["targets"] == 2 * 4 * (S - 1) and noted["taught"] == 2 * 3 * (S - 1)
    assert noted["heard"] == {"1": 1, "2": 1} and noted["unusable"] == 0


def test_predictions_too_old_are_forgotten_and_novices_are_not_heard(postboxes: list[Postbox]) -> None:
    teacher, learner = predictions(postboxes[1]), predictions(postboxes[0], burn_in=3)
    train_on(llama(1), teacher, 1, [batch_of([1])])
    hear(learner, 1)  # arrives in step 0
    objective = llama(0)
    for step, taught in ((3, 0), (4, S - 1), (8, S - 1), (9, 0)):
        train_on(objective, learner, step, [batch_of([1])])
        assert learner.collect()["taught"] == taught, step
    assert not learner._known[1]


def test_a_rehearsal_tells_nothing(postboxes: list[Postbox]) -> None:
    exchange, objective = predictions(postboxes[0]), llama(0)
    plain = float(objective(batch_of([1])).total)
    assert train_on(objective, exchange, 0, [batch_of([1])]) == plain
    assert not exchange._made and postboxes[0].sent_bytes == 0


def test_meter_and_formula(postboxes: list[Postbox]) -> None:
    exchange, objective = predictions(postboxes[0]), llama(0)
    for step in range(1, 4):
        train_on(objective, exchange, step, [batch_of([step, 10 + step]), batch_of([20 + step])])
    postboxes[0].close()
    assert postboxes[0].sent_bytes == 3 * letter_bytes(3, S, 5, V)


@given(
    st.integers(0, 4),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([300, 1 << 16, (1 << 16) + 1]),
    st.randoms(),
)
def test_letters(samples: int, tokens: int, top: int, vocabulary: int, dice: Any) -> None:
    keys = [dice.randrange(1 << 64) for _ in range(samples)]
    ids = torch.randint(vocabulary, (samples, tokens, top))
    chances = torch.rand(samples, tokens, top).half()
    payload = write_letter(keys, ids, chances, vocabulary)
    assert len(payload) == letter_bytes(samples, tokens, top, vocabulary)
    letter = read_letter(payload, vocabulary)
    assert letter.keys.tolist() == keys
    np.testing.assert_array_equal(letter.ids, ids.numpy())
    np.testing.assert_array_equal(letter.chances, chances.numpy())
    for torn in (payload[:-1], payload[:10], b"", payload + b"x"):
        with pytest.raises(ValueError, match="letter"):
            read_letter(torn, vocabulary)


def test_letters_that_do_not_fit(postboxes: list[Postbox]) -> None:
    ids, chances = torch.full((1, S, 5), V), torch.full((1, S, 5), 0.1).half()
    strange = [write_letter([1], ids, chances, V + 1), write_letter([1], ids - 1, chances * torch.nan, V)]
    strange.append(write_letter([1], ids[..., :2] - 1, chances[..., :2], V))
    exchange = predictions(postboxes[0])
    for number, payload in enumerate(strange):
        postboxes[1].post("predictions", number, 9, lambda payload=payload: payload)
    hear(exchange, 3)
    assert exchange.collect()["unusable"] == 3 and not exchange._known.get(1)


def test_a_sample_is_known_by_its_tokens_and_targets() -> None:
    one, other = batch_of([1, 2, 3]), batch_of([3, 1])
    assert keys_of(one)[0] == keys_of(other)[1] and keys_of(one)[2] == keys_of(other)[0]
    changed = {**one, "labels": one["labels"].masked_fill(torch.arange(S) == 5, IGNORED)}
    assert not set(keys_of(changed)) & set(keys_of(one))


# Weights ----------------------------------------------------------------------------------------------------------


def weights(postbox: Postbox, **changes: Any) -> WeightsOfOthers:
    return WeightsOfOthers(
        settings("weights", **changes), postbox, CPU, vocabulary=V, context=nullcontext, speaks=True
    )


def test_models_of_others_are_run_on_own_samples(postboxes: list[Postbox]) -> None:
    objectives = [llama(0), llama(1, width=32), gpt2(2)]
    exchanges = [weights(postbox) for postbox in postboxes]
    batch = batch_of([1, 2])
    for group in (1, 2):
        train_on(objectives[group], exchanges[group], 2, [batch_of([7])])
    exchanges[0].step = 2
    hear(exchanges[0], 2)
    student = whole_logits(objectives[0], batch).double()
    kl = torch.zeros((), dtype=torch.float64)
    targets = batch["labels"] != IGNORED
    for objective in objectives[1:]:
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.copy_(parameter.bfloat16())  # as they travel
            theirs = whole_logits(objective, batch).double() / 1.5
        kl = kl + F.kl_div(
            F.log_softmax(student / 1.5, -1)[targets],
            F.log_softmax(theirs, -1)[targets],
            log_target=True,
            reduction="sum",
        )
    loss = F.cross_entropy(student[targets], batch["labels"][targets], reduction="sum")
    expected = loss + 0.7 * 1.5**2 * kl / 2
    objectives[0].zero_grad()
    expected.backward()
    wanted = [p.grad.clone() for p in objectives[0].parameters() if p.grad is not None]
    assert train_on(objectives[0], exchanges[0], 3, [batch]) == pytest.approx(float(expected), rel=1e-4)
    got = [p.grad for p in objectives[0].parameters() if p.grad is not None]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert exchanges[0].collect()["taught"] == 2 * (S - 1)
    # A group that is silent for too long is not heard any more.
    train_on(objectives[0], exchanges[0], 11, [batch])
    assert exchanges[0].collect() | {"heard": 0} == {
        "targets": 2 * (S - 1),
        "taught": 0,
        "age_steps": 0.0,
        "divergence": 0.0,
        "unusable": 0,
        "heard": 0,
    }


def test_newer_weights_take_the_place_of_older_ones(postboxes: list[Postbox]) -> None:
    teacher, exchange, learner = llama(1), weights(postboxes[1]), weights(postboxes[0])
    for step in (2, 4):
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.fill_(step / 64)
        train_on(teacher, exchange, step, [batch_of([7])])
        hear(learner, 1)
        copy = learner._teachers[1].objective
        assert all(bool((p == step / 64).all()) and not p.requires_grad for p in copy.parameters())
    assert learner.heard == {1: 4}


def test_weights_that_do_not_fit(postboxes: list[Postbox]) -> None:
    good = llama(1)
    config = good.model.config.to_json_string()
    state = {name: tensor.detach().bfloat16() for name, tensor in good.model.state_dict().items()}
    name = next(iter(state))
    larger = LlamaConfig(vocab_size=V + 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    payloads = [
        b"",
        write_weights(config, state)[:-5],
        write_weights(config, state | {name: state[name] * torch.nan}),
        write_weights("{}", state),
        write_weights(larger.to_json_string(), state),
        write_weights(llama(1, width=32).model.config.to_json_string(), state),
    ]
    exchange = weights(postboxes[0])
    for number, payload in enumerate(payloads):
        postboxes[1].post("weights", number, 9, lambda payload=payload: payload)
    hear(exchange, len(payloads))
    assert exchange.collect()["unusable"] == len(payloads) and not exchange.heard
    found, back = read_weights(write_weights(config, state))
    assert found == config and all(torch.equal(back[name], state[name]) for name in state)
