"""Learning to write from models that write, beside the equation over whole logits and torch's own gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tutti.config.task import DistilConfig
from tutti.core import Batch, Objective
from tutti.tasks import CausalLanguageModelling
from tutti.tasks.sequences import EncoderDecoder
from tutti.tasks.token_teachers import TokenTeachers

V = 40
SHAPE = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "head_dim": 8,
}


def drawn(model: PreTrainedModel, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def llama(seed: int) -> CausalLanguageModelling:
    return CausalLanguageModelling(drawn(LlamaForCausalLM(LlamaConfig(**SHAPE)), seed))


def gemma(seed: int) -> CausalLanguageModelling:
    """Caps its logits, which are computed as a whole therefore."""
    return CausalLanguageModelling(drawn(Gemma2ForCausalLM(Gemma2Config(**SHAPE)), seed))


def bart(seed: int) -> EncoderDecoder:
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    feet = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    config = BartConfig(
        vocab_size=V, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape, **feet, **heads
    )
    return EncoderDecoder(drawn(BartForConditionalGeneration(config), seed))


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, V, (rows, length), generator=torch.Generator().manual_seed(3))


LABELS = torch.roll(ids(3, 12), -1, 1).index_fill(1, torch.tensor([11]), -100)
PACKED = {
    "input_ids": ids(3, 12),
    "labels": LABELS.index_fill(1, torch.tensor([4]), -100),
    "position_ids": torch.cat([torch.arange(5), torch.arange(7)]).expand(3, 12),
}
PLAIN = {"input_ids": ids(3, 12), "labels": LABELS}
PAIRS = {"input_ids": ids(3, 9), "attention_mask": torch.ones(3, 9, dtype=torch.int64), "labels": LABELS}


def whole_logits(objective: Any, batch: Batch) -> Tensor:
    """[targets, V], by nothing but the model."""
    model, there = objective.model, batch["labels"].reshape(-1) >= 0
    if isinstance(objective, EncoderDecoder):
        out = model(**batch).logits
    elif "position_ids" in batch:
        parts = [model(input_ids=batch["input_ids"][:, some]).logits for some in (slice(5), slice(5, 12))]
        out = torch.cat(parts, 1)
    else:
        out = model(input_ids=batch["input_ids"]).logits
    return out.flatten(0, 1)[there].double()


def of_the_paper(learner: Objective, teachers: list[Any], batch: Batch, config: DistilConfig) -> Tensor:
    logits, warm = whole_logits(learner, batch), config.temperature
    own = torch.log_softmax(logits / warm, 1)
    with torch.no_grad():
        theirs = sum(torch.softmax(whole_logits(one, batch) / warm, 1) for one in teachers) / len(teachers)
    told = theirs.log()
    apart = (own.exp() * (own - told)).sum() if config.reverse else (theirs * (told - own)).sum()
    target = batch["labels"].reshape(-1)
    plain = F.cross_entropy(logits, target[target >= 0], reduction="sum")
    return config.weight * warm**2 * apart + (1 - config.weight) * plain


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("make", "batch", "count"),
    [(llama, PLAIN, 1), (llama, PACKED, 2), (gemma, PLAIN, 1), (bart, PAIRS, 2)],
    ids=["llama", "packed llama, two teachers", "gemma", "bart, two teachers"],
)
def test_loss_and_gradients_are_those_of_the_equation(
    make: Any, batch: Batch, count: int, reverse: bool
) -> None:
    config = DistilConfig(teacher="x", weight=0.7, temperature=2.5, reverse=reverse)
    learner, teachers = make(0), [make(1 + number) for number in range(count)]
    expected = copy.deepcopy(learner).eval()
    wanted = of_the_paper(expected, teachers, batch, config)
    wanted.backward()
    plain = learner.eval()(batch)
    learner.term = TokenTeachers(teachers, config)
    torch.testing.assert_close(learner(batch).total, plain.total)  # no teacher while it is judged
    loss = learner.train()(batch)
    assert int(loss.targets) == int((batch["labels"] >= 0).sum())
    torch.testing.assert_close(loss.total.double(), wanted, rtol=1e-4, atol=1e-4)
    assert learner.added() == pytest.approx(float((wanted - plain.total).detach()), rel=1e-3)
    loss.total.backward()
    there = dict(expected.model.named_parameters())
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(parameter.grad, there[name].grad, rtol=2e-3, atol=2e-4, msg=name)
    assert all(parameter.grad is None for one in teachers for parameter in one.model.parameters())


def test_who_thinks_the_same_learns_nothing_from_a_teacher_alone() -> None:
    learner = llama(0)
    learner.term = TokenTeachers([copy.deepcopy(learner)], DistilConfig(teacher="x", weight=1.0))
    loss = learner.train()(PLAIN)
    loss.total.backward()
    assert abs(float(loss.total)) < 1e-3
    assert all(parameter.grad.abs().max() < 1e-4 for parameter in learner.model.parameters())


def test_a_batch_without_targets_adds_nothing() -> None:
    term = TokenTeachers([llama(1)], DistilConfig(teacher="x"))
    assert term.of(PLAIN | {"labels": torch.full((3, 12), -100)}) is None
