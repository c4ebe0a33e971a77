"""Rows that are added to a gradient are those that autograd would have added."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tutti.models.lookup import RowsEmbedding, add_rows_only


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("held", [False, True])
def test_the_gradient_is_that_of_autograd(padding: int | None, held: bool) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 3, 5, 1], [2, 3, 3, 0]])
    found = []
    for quick in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(7, 4, padding_idx=padding), nn.Linear(4, 2))
        if quick:
            add_rows_only(model)
        table = model[0].weight
        assert isinstance(table, nn.Parameter)
        buffer = torch.ones(7, 4)
        table.grad = buffer if held else None
        for micro_batch in ids:
            model(micro_batch).square().sum().backward()
        assert table.grad is not None and (not held or table.grad is buffer)
        found.append(table.grad)
        assert type(model[0]) is (RowsEmbedding if quick else nn.Embedding)
    torch.testing.assert_close(found[1], found[0])


def test_a_table_that_is_the_head_as_well_is_left_to_autograd() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    add_rows_only(model)
    assert type(model[0]) is nn.Embedding
