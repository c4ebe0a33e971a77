"""The KL term against NumPy, from the equations in `tutti.tasks.distillation`; and inside the chunked loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, MambaConfig
from transformers import MambaForCausalLM as Mamba

from tutti.core import Batch
from tutti.tasks import CausalLanguageModelling
from tutti.tasks.chunked_loss import chunked_cross_entropy_and
from tutti.tasks.distillation import divergence, likeliest, mean_over_teachers, soften, sparse_divergence
from tutti.tasks.terms import Added, Addend, LossTerm

N, D, V, K = 23, 8, 11, 3
IGNORED = -100


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def coarse_kl(student: np.ndarray, ids: np.ndarray, chances: np.ndarray, temperature: float) -> np.ndarray:
    """T² KL over k + 1 events: each token that was sent, and "another one"."""
    p = softmax(student, temperature)
    result = np.zeros(len(p))
    for row in range(len(p)):
        theirs = np.append(chances[row], 1 - chances[row].sum())
        ours = np.append(p[row, ids[row]], np.delete(p[row], ids[row]).sum())
        result[row] = temperature**2 * (theirs * np.log(theirs / ours)).sum()
    return result


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = 1e-5
        gradient[index] = (function(at + step) - function(at - step)) / 2e-5
    return gradient


def logits(seed: int, rows: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, V)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_whole_predictions(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    p, q = softmax(student, temperature), softmax(teacher, temperature)
    found = divergence(
        soften(torch.from_numpy(student), temperature), soften(torch.from_numpy(teacher), temperature)
    )
    added = mean_over_teachers([found], torch.ones(1, N, dtype=torch.bool), 0.7, temperature)
    expected = 0.7 * temperature**2 * (q * np.log(q / p)).sum()
    np.testing.assert_allclose(float(added.total), expected, rtol=1e-12)
    np.testing.assert_allclose(added.gradient.numpy(), 0.7 * temperature * (p - q), atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_few_numbers_of_a_prediction(temperature: float) -> None:
    student, q = logits(0), softmax(logits(1), temperature)
    ids = np.argsort(-q, 1)[:, :K].copy()
    chances = np.take_along_axis(q, ids, 1)

    def loss(at: np.ndarray) -> float:
        return float(coarse_kl(at, ids, chances, temperature).sum())

    found = sparse_divergence(
        soften(torch.from_numpy(student), temperature), torch.from_numpy(ids), torch.from_numpy(chances)
    )
    added = mean_over_teachers([found], torch.ones(1, N, dtype=torch.bool), 1.0, temperature)
    np.testing.assert_allclose(float(added.total), loss(student), rtol=1e-10)
    np.testing.assert_allclose(added.gradient.numpy(), numeric_gradient(loss, student), atol=1e-6)


def test_all_numbers_of_a_prediction_are_the_whole_of_it_and_fewer_are_never_more() -> None:
    ours, theirs = soften(torch.from_numpy(logits(0)), 2.0), soften(torch.from_numpy(logits(1)), 2.0)
    whole, difference = divergence(ours, theirs)
    before = torch.zeros(N, dtype=torch.float64)
    for count in (1, 2, 5, V - 1, V):
        apart, _ = sparse_divergence(ours, *likeliest(theirs, count))
        assert (apart <= whole + 1e-12).all() and (apart >= -1e-12).all()
        assert apart.sum() >= before.sum() - 1e-12
        before = apart
    torch.testing.assert_close(apart, whole)
    torch.testing.assert_close(sparse_divergence(ours, *likeliest(theirs, V))[1], difference)


def test_a_student_that_is_sure_gets_finite_numbers() -> None:
    ours = soften(torch.tensor([[200.0] + [0.0] * (V - 1)]), 1.0)
    ids = torch.tensor([[0, 1]])
    for chances in (
        [[0.5, 0.25]],
        [[1.0, 0.0]],
        [[0.9, 0.2]],
    ):  # the last sums to more than 1, as rounding may
        apart, difference = sparse_divergence(ours, ids, torch.tensor(chances))
        assert apart.isfinite().all() and difference.isfinite().all()


def test_teachers_count_where_they_are_present_and_their_mean_is_taken() -> None:
    student = torch.from_numpy(logits(0))
    teachers = [torch.from_numpy(logits(seed)) for seed in (1, 2)]
    found = [divergence(soften(student, 1.0), soften(teacher, 1.0)) for teacher in teachers]
    present = torch.zeros(2, N, dtype=torch.bool)
    present[0, :10], present[1, 5:15] = True, True
    added = mean_over_teachers(found, present, 1.0, 1.0)
    p = softmax(student.numpy(), 1.0)
    q = [softmax(teacher.numpy(), 1.0) for teacher in teachers]
    mean = np.concatenate([q[0][:5], (q[0][5:10] + q[1][5:10]) / 2, q[1][10:15]])
    np.testing.assert_allclose(added.gradient.numpy()[:15], p[:15] - mean, atol=1e-12)
    assert not added.gradient[15:].any()


def dense(teacher: Tensor, weight: float, temperature: float) -> Addend:
    """The term for given teacher's logits, one row for each place."""

    def addend(places: Tensor, of: Tensor) -> Added:
        found = divergence(soften(of, temperature), soften(teacher[places], temperature))
        return mean_over_teachers([found], places.new_ones(1, len(places)).bool(), weight, temperature)

    return addend


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_inside_the_chunked_loss(chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (N,), generator=generator)
    labels[::3] = IGNORED
    teacher = torch.from_numpy(logits(1))
    of = torch.randperm(N, generator=generator)
    whole = F.linear(hidden, weight, bias)
    kl = F.kl_div(
        F.log_softmax(whole / 2, 1), F.log_softmax(teacher[of] / 2, 1), log_target=True, reduction="none"
    )
    expected = F.cross_entropy(whole, labels, ignore_index=IGNORED, reduction="sum")
    expected = expected + 0.3 * 4 * kl[labels != IGNORED].sum()
    wanted = torch.autograd.grad(expected * 0.37, [hidden, weight, bias])
    total = chunked_cross_entropy_and(dense(teacher, 0.3, 2.0), of, hidden, weight, labels, bias, chunk)
    torch.testing.assert_close(total, expected)
    got = torch.autograd.grad(total * 0.37, [hidden, weight, bias])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


# In whole models --------------------------------------------------------------------------------------------------

WORDS, LENGTH = 64, 12
SIZES = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 32}


def llama(seed: int, width: int = 16) -> CausalLanguageModelling:
    torch.manual_seed(seed)
    sizes = SIZES | {"hidden_size": width, "intermediate_size": 32, "num_attention_heads": 2}
    return CausalLanguageModelling(LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)))


def gemma(seed: int) -> CausalLanguageModelling:
    """Its logits are changed after the head, so they are computed as a whole."""
    torch.manual_seed(seed)
    sizes = SIZES | {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=2.0)
    return CausalLanguageModelling(Gemma2ForCausalLM(config))


def mamba(seed: int) -> CausalLanguageModelling:
    """Takes documents only as rows of their own."""
    torch.manual_seed(seed)
    return CausalLanguageModelling(Mamba(MambaConfig(**SIZES, state_size=4, intermediate_size=32)))


def packed(rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(WORDS, (rows, LENGTH), generator=generator)
    labels = torch.randint(WORDS, (rows, LENGTH), generator=generator)
    positions = torch.arange(LENGTH).repeat(rows, 1)
    positions[1, 5:] = torch.arange(LENGTH - 5)
    labels[1, 4], labels[0, :3] = IGNORED, IGNORED
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


class Learns(LossTerm):
    """From another objective, of which every sample is run."""

    def __init__(self, teacher: CausalLanguageModelling) -> None:
        self.teacher = teacher.eval()

    def of(self, batch: Batch) -> Addend:
        logits = self.teacher.predict(batch)

        def addend(places: Tensor, of: Tensor) -> Added:
            return dense(logits(places), 0.5, 1.5)(torch.arange(len(places)), of)

        return addend


def logits_alone(objective: CausalLanguageModelling, batch: Batch) -> Tensor:
    """[B, S, V]: every document computed by itself, by the bare model."""
    model: Callable[..., object] = objective.model
    found = []
    for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        pieces = [ids[a:b] for a, b in itertools.pairwise(starts)]
        found.append(torch.cat([model(input_ids=p[None], use_cache=False).logits[0] for p in pieces]))
    return torch.stack(found)


@pytest.mark.parametrize("student", [llama, gemma, mamba])
@pytest.mark.parametrize("teacher", [llama, gemma, mamba])
def test_any_model_learns_from_any_other(
    student: Callable[[int], CausalLanguageModelling], teacher: Callable[[int], CausalLanguageModelling]
) -> None:
    objective, other, batch = student(1), teacher(2), packed()
    targets = batch["labels"] != IGNORED
    ours = logits_alone(objective, batch)[targets]
    theirs = logits_alone(other, batch)[targets].detach()
    loss = F.cross_entropy(ours, batch["labels"][targets], reduction="sum")
    kl = F.kl_div(
        F.log_softmax(ours / 1.5, 1), F.log_softmax(theirs / 1.5, 1), log_target=True, reduction="sum"
    )
    parameters = list(objective.parameters())
    wanted = torch.autograd.grad(loss + 0.5 * 1.5**2 * kl, parameters)
    objective.term = Learns(other)
    total, counted = objective.train()(batch)
    assert int(counted) == int(targets.sum())
    torch.testing.assert_close(total, loss + 0.5 * 1.5**2 * kl, rtol=1e-4, atol=1e-4)
    assert objective.added() == pytest.approx(float(0.5 * 1.5**2 * kl), rel=1e-3)
    assert objective.added() == 0.0
    for one, other_one in zip(torch.autograd.grad(total, parameters), wanted, strict=True):
        torch.testing.assert_close(one, other_one, rtol=1e-3, atol=1e-4)


def test_micro_batches_change_nothing_and_evaluation_is_left_alone() -> None:
    objective, batch = llama(1), packed()
    plain = float(objective(batch).total)
    objective.term = Learns(llama(2, width=32))
    gradients = []
    for size in (1, 3, 4):
        objective.train().zero_grad()
        for first in range(0, 4, size):
            objective({name: tensor[first : first + size] for name, tensor in batch.items()}).total.backward()
        gradients.append([p.grad.clone() for p in objective.parameters() if p.grad is not None])
    for one in gradients[1:]:
        for got, want in zip(one, gradients[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert float(objective.eval()(batch).total) == plain
