"""Attention to slots is that of every text alone, as torch computes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tutti.serve.engine.attention import write

SLOTS, CAPACITY, WIDTH = 6, 40, 16


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["heads", "shared-keys"])
@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float64),
    ],
    ids=["fp32", "bf16", "all-bf16", "fp64"],
)
@pytest.mark.parametrize("slots", [[0, 1, 2, 4], [1, 5], [3]], ids=["near", "far", "one"])
def test_one_token_each(
    heads: tuple[int, int], stored: torch.dtype, computed: torch.dtype, slots: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    queries, shared = heads
    keys, values = (drawn(SLOTS, shared, CAPACITY, WIDTH).to(stored) for _ in range(2))
    before = keys.clone(), values.clone()
    places = torch.tensor([0, 39, 7, 20][: len(slots)])
    # As a model hands them over: tokens last but one.
    query = drawn(queries, len(slots), WIDTH).to(computed).transpose(0, 1)
    key, value = (drawn(shared, len(slots), WIDTH).to(computed).transpose(0, 1) for _ in range(2))
    found = write(query, key, value, keys, values, torch.tensor(slots), places, 0.3)
    assert found.dtype == computed
    for row, (slot, place) in enumerate(zip(slots, places.tolist(), strict=True)):
        for kept, old, new in zip((keys, values), before, (key, value), strict=True):
            assert torch.equal(kept[slot, :, place], new[row].to(stored))
            old[slot, :, place] = new[row].to(stored)
        expected = F.scaled_dot_product_attention(
            query[row, :, None].double(),
            before[0][slot, :, : place + 1].double(),
            before[1][slot, :, : place + 1].double(),
            scale=0.3,
            enable_gqa=True,
        )[:, 0]
        tolerance = 0.02 if computed == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found[row].double(), expected, atol=tolerance, rtol=tolerance)
    for kept, old in zip((keys, values), before, strict=True):
        assert torch.equal(kept, old), "nothing else was written to"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("broken", ["query", "key", "value"])
def test_what_is_no_number_is_not_hidden(stored: torch.dtype, broken: str) -> None:
    given = {
        "query": torch.ones(2, 4, WIDTH),
        "key": torch.ones(2, 2, WIDTH),
        "value": torch.ones(2, 2, WIDTH),
    }
    given[broken][1, 1, 3] = float("nan")
    keys, values = (torch.ones(SLOTS, 2, CAPACITY, WIDTH, dtype=stored) for _ in range(2))
    slots, places = torch.tensor([0, 3]), torch.tensor([5, 6])
    found = write(given["query"], given["key"], given["value"], keys, values, slots, places, 0.3)
    assert torch.isfinite(found[0]).all()
    assert torch.isnan(found[1]).any()
