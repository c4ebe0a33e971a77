"""Quick dropout is dropout; attention with it is torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tutti.tasks import packing
from tutti.tasks.dropout import QuickDropout, drop, quicken_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.875])
def test_a_share_is_dropped_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(1001, 333, requires_grad=True)
    found = drop(values, p)
    assert float((found == 0).double().mean()) == pytest.approx(p, abs=0.004)
    kept = found.detach()[found != 0]
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - p), rel=1e-4)
    # Neither neighbours nor the four dice of a word know of each other.
    gone = (found == 0).flatten().double()
    for apart in (1, 2, 3, 4):
        assert float(torch.corrcoef(torch.stack([gone[:-apart], gone[apart:]]))[0, 1]) == pytest.approx(
            0, abs=0.01
        )
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach())


def test_the_seed_decides_and_evaluation_drops_nothing() -> None:
    model = nn.Sequential(nn.Dropout(0.3))
    quicken_dropout(model)
    values = torch.randn(5, 7)
    assert type(model[0]) is QuickDropout
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(values))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(model.eval()(values), values)


@pytest.mark.parametrize("boolean", [True, False])
def test_attention_with_dropout_is_that_of_torch_but_for_the_dice(
    boolean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    there = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None, :]
    mask = there if boolean else torch.zeros(2, 1, 1, 5).masked_fill(~there, torch.finfo(torch.float32).min)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)
    seen = []
    monkeypatch.setattr(packing, "drop", lambda scores, p: seen.append(p) or scores)
    found, _ = packing._attend_here(
        nn.Identity(), query, key, value, mask, dropout=0.1, scaling=0.3, is_causal=False
    )
    assert seen == [0.1]
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((of * weights).sum(), (query, key, value)) for of in (found, expected)]
    torch.testing.assert_close(*gradients)
