"""Samples of any model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from tutti.core import DataError, SampleSource
from tutti.data import TensorSource


class Squares(Dataset[Any]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), index * index


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(1, 2)])


INPUTS = torch.arange(12.0).reshape(6, 2)
TARGETS = torch.arange(6) % 3


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, TARGETS),
        [INPUTS, TARGETS],
        {"inputs": INPUTS, "targets": TARGETS},
        TensorDataset(INPUTS, TARGETS),
    ],
)
def test_tensors_in_any_form(data: Any) -> None:
    source = TensorSource(data)
    assert isinstance(source, SampleSource)
    assert source.samples_in_epoch(0) == source.samples_in_epoch(7) == 6
    batch = source.load(3, [4, 0, 4])
    assert torch.equal(batch["inputs"], INPUTS[[4, 0, 4]])
    assert torch.equal(batch["targets"], TARGETS[[4, 0, 4]])
    assert torch.equal(batch["weight"], torch.ones(3))
    empty = source.empty()
    assert torch.equal(empty["inputs"], INPUTS[:1])
    assert torch.equal(empty["weight"], torch.zeros(1))
    assert source.fingerprint == TensorSource((INPUTS, TARGETS)).fingerprint


def test_a_data_set() -> None:
    source = TensorSource(Squares(5))
    batch = source.load(0, [2, 3])
    assert batch["inputs"].tolist() == [[2.0], [3.0]]
    assert batch["targets"].tolist() == [4, 9]
    assert source.empty()["weight"].tolist() == [0.0]
    assert source.fingerprint == TensorSource(Squares(5)).fingerprint != TensorSource(Squares(6)).fingerprint


def test_the_fingerprint_names_the_content() -> None:
    changed = INPUTS.clone()
    changed[3, 1] += 1e-6 * changed[3, 1]
    prints = {
        TensorSource(pair).fingerprint
        for pair in (
            (INPUTS, TARGETS),
            (changed, TARGETS),
            (INPUTS.T.contiguous().T, TARGETS),  # the same numbers
            (INPUTS.bfloat16(), TARGETS),
            (INPUTS.reshape(6, 1, 2), TARGETS),
        )
    }
    assert len(prints) == 4
    TensorSource((torch.zeros(3, 0), torch.ones(3, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((INPUTS, TARGETS[:5]), "6 inputs but 5 targets"),
        ((INPUTS,), "no pair of tensors"),
        ((INPUTS, [1, 2]), "no pair of tensors"),
        ((INPUTS[:0], TARGETS[:0]), "no samples"),
        ({"x": INPUTS, "y": TARGETS}, r"names \['x', 'y'\]"),
        (Squares(0), "no samples"),
        (Stream(), "no map-style data set"),
        (TensorDataset(INPUTS), "no pair of tensors"),
        (3, "no map-style data set"),
    ],
)
def test_nonsense_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TensorSource(data)
