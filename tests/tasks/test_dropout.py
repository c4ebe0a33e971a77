"""Quick dropout is dropout; attention with it is torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutti.tasks import banded, packing
from tutti.tasks.dense import Places
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


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_banded_attention_of_packed_rows_is_that_of_padded_ones(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(rows)
    heads, width = 2, 4
    lengths = torch.randperm(12)[:rows] + 2
    mask = (torch.arange(14) < lengths[:, None]).long()
    query, key, value = (torch.randn(rows, heads, 14, width, requires_grad=True) for _ in range(3))
    seen = mask.bool()[:, None, None, :]
    chances = ((query * 0.5) @ key.mT).masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
    whole = torch.rand(rows, heads, 14, 14).gt(0.25) / 0.75
    expected = ((chances * whole) @ value).transpose(1, 2)
    places = Places.of(mask)
    bands = iter(places.bands)

    def of_band(chances: Tensor, p: float) -> Tensor:
        band = next(bands)
        assert p == 0.25 and chances.shape == (len(band.rows), heads, band.length, band.length)
        return whole[band.rows][:, :, : band.length, : band.length]

    monkeypatch.setattr(banded, "factors_like", of_band)
    packed = (places.pack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    found = banded.BandedAttention.apply(*packed, seen.expand(rows, 1, 14, 14), places, 0.25, 0.5)
    there = mask.bool()
    torch.testing.assert_close(places.unpack(found)[there], expected[there])
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((of * weights)[there].sum(), (query, key, value))
        for of in (places.unpack(found), expected)
    ]
    torch.testing.assert_close(*gradients)
