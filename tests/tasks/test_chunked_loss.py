"""The chunked loss against F.cross_entropy on whole logits, and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutti.tasks import chunked_cross_entropy
from tutti.tasks.chunked_loss import default_chunk

N, D, V = 37, 16, 53


def _case(dtype: torch.dtype = torch.float32, ignored: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, dtype=dtype, requires_grad=True)
    labels = torch.randint(V, (N,))
    if ignored:
        labels[::3] = -100
    return hidden, weight, bias, labels


@pytest.mark.parametrize("chunk", [1, 8, 37, 500, None])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_same_loss_and_gradients_as_whole_logits(chunk: int | None, with_bias: bool, ignored: bool) -> None:
    hidden, weight, bias, labels = _case(torch.float64, ignored)
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    expected = F.cross_entropy(
        F.linear(hidden, weight, bias if with_bias else None), labels, ignore_index=-100, reduction="sum"
    )
    wanted = torch.autograd.grad(expected * 0.37, inputs)
    total = chunked_cross_entropy(hidden, weight, labels, bias if with_bias else None, chunk)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(total * 0.37, inputs), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    torch.manual_seed(2)
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))
    ]
    labels = torch.tensor([0, 6, -100, 2, 2])
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: chunked_cross_entropy(hidden, weight, labels, bias, 2), inputs
    )


def test_operator_is_well_formed() -> None:
    hidden, weight, _, labels = _case()
    torch.library.opcheck(
        torch.ops.tutti.linear_cross_entropy, (hidden, weight, labels, None, 8, torch.float32, True, True)
    )


def test_against_numpy_with_extreme_logits() -> None:
    """Probabilities that underflow must not turn the loss into infinity."""
    hidden = torch.tensor([[300.0, -300.0], [0.0, 200.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    labels = torch.tensor([1, 0])
    logits = hidden.double().numpy() @ weight.double().numpy().T
    chances = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    expected = -(chances[0, 1] + chances[1, 0])
    assert chunked_cross_entropy(hidden, weight, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chunk", [3, None])
@pytest.mark.parametrize("with_bias", [False, True])
def test_unlikely_targets_among_likely_ones(chunk: int | None, with_bias: bool) -> None:
    """Rows whose probability underflows in fp32 are computed another way; the sum must not show it."""
    hidden, weight, bias, labels = (tensor.detach() for tensor in _case(ignored=False))
    hidden[::4] *= 40
    bias = bias if with_bias else None
    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    chances = logits.softmax(1).gather(1, labels[:, None])
    assert (chances < 1e-30).any() and (chances > 1e-30).any()
    expected = F.cross_entropy(logits, labels, reduction="sum")
    total = chunked_cross_entropy(hidden, weight, labels, bias, chunk)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_targets_gives_zero_and_zero_gradients() -> None:
    hidden, weight, bias, labels = _case()
    total = chunked_cross_entropy(hidden, weight, torch.full_like(labels, -100), bias)
    total.backward()
    assert total.item() == 0
    for tensor in (hidden, weight, bias):
        assert tensor.grad is not None and tensor.grad.abs().max() == 0


def test_backward_twice_through_a_kept_graph_gives_the_same() -> None:
    hidden, weight, _, labels = _case()
    total = chunked_cross_entropy(hidden, weight, labels)
    first = torch.autograd.grad(total, [hidden, weight], torch.tensor(2.0), retain_graph=True)
    again = torch.autograd.grad(total, [hidden, weight], torch.tensor(2.0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_frozen_head_and_no_grad_do_no_work_for_gradients() -> None:
    hidden, weight, _, labels = _case()
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).requires_grad
    chunked_cross_entropy(hidden, weight.detach(), labels).backward()
    assert hidden.grad is not None and weight.grad is None
    chunked_cross_entropy(hidden.detach(), weight, labels).backward()
    assert weight.grad is not None


def test_tied_weights_add_both_gradients() -> None:
    _, weight, _, labels = _case(torch.float64)
    ids = torch.randint(V, (N,))
    total = chunked_cross_entropy(F.embedding(ids, weight) * 2, weight, labels)
    expected = F.cross_entropy(F.linear(F.embedding(ids, weight) * 2, weight), labels, reduction="sum")
    got, want = torch.autograd.grad(total, weight)[0], torch.autograd.grad(expected, weight)[0]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_as_near_as_whole_logits_are(autocast: bool) -> None:
    hidden, weight, _, labels = _case(torch.float32 if autocast else torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    reference = torch.autograd.grad(
        F.cross_entropy(F.linear(exact[0], exact[1]), labels, reduction="sum"), exact
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")
        total = chunked_cross_entropy(hidden, weight, labels, chunk=8)
    assert total.dtype == torch.float32
    theirs = torch.autograd.grad(whole, [hidden, weight])
    ours = torch.autograd.grad(total, [hidden, weight])
    for our, their, truth in zip(ours, theirs, reference, strict=True):
        assert our.dtype == their.dtype
        assert (our.double() - truth).norm() <= 1.5 * (their.double() - truth).norm() + 1e-9


def test_compiles_into_one_graph() -> None:
    hidden, weight, _, labels = _case()
    compiled = torch.compile(
        lambda h, w: chunked_cross_entropy(h * 2, w, labels) * 3, fullgraph=True, backend="aot_eager"
    )
    expected = F.cross_entropy(F.linear(hidden * 2, weight), labels, reduction="sum") * 3
    total = compiled(hidden, weight)
    for got, want in zip(
        torch.autograd.grad(total, [hidden, weight]),
        torch.autograd.grad(expected, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_chunk_goes_by_the_vocabulary() -> None:
    cpu = torch.device("cpu")
    assert default_chunk(65, cpu) == 8192
    assert default_chunk(4096, cpu) == 1024
    assert default_chunk(128_000, cpu) == 256
