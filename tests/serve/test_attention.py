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


@pytest.mark.parametrize("width", [16, 64, 80])
def test_threads_and_far_scores_change_nothing(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(3, 2, 50, width, generator=generator) for _ in range(2))
    query, key, value = (torch.randn(3, heads, width, generator=generator) for heads in (4, 2, 2))
    slots, places = torch.arange(3), torch.tensor([49, 0, 17])
    given = (query, key, value, keys, values, slots, places, 30.0)  # scores are hundreds apart
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(write(*given))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    for row, place in enumerate(places.tolist()):
        parts = (query[row, :, None], keys[row, :, : place + 1], values[row, :, : place + 1])
        expected = F.scaled_dot_product_attention(
            *(one.double() for one in parts), scale=30.0, enable_gqa=True
        )
        torch.testing.assert_close(found[0][row].double(), expected[:, 0], atol=1e-4, rtol=1e-4)


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
