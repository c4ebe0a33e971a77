"""Samples of any model: pairs of inputs and targets from tensors or from a map-style data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from tutti.core.errors import DataError
from tutti.core.types import Batch, SampleSource

Pairs = tuple[Tensor, Tensor] | Mapping[str, Tensor] | Dataset[Any]


class TensorSource(SampleSource):
    """Samples (inputs, targets), the same number in every epoch.

    `data`: a tuple (inputs, targets) of equally long tensors, a mapping with these two names, or a data set
    with `len` whose items are pairs. Batch: `inputs` [B, …], `targets` [B, …], `weight` float32 [B]: 1 for a
    sample, 0 for the one of `empty()`, which counts for nothing.

    The fingerprint of tensors names their content; that of a data set, which may be anything, only its
    class, length and the shapes of its first item.

    Raises:
        DataError: not of these forms, no samples, or tensors of different length.
    """

    #: So that the end of an epoch leaves no micro-batch of a single sample, which batch normalisation cannot take.
    same_every_epoch = True

    def __init__(self, data: Pairs) -> None:
        self._tensors: tuple[Tensor, Tensor] | None = None
        self._items: Dataset[Any] | None = None
        if isinstance(data, TensorDataset):
            data = cast("tuple[Tensor, Tensor]", tuple(data.tensors))
        if isinstance(data, Mapping):
            if set(data) != {"inputs", "targets"}:
                raise DataError(
                    f"the data has the names {sorted(data)}",
                    "give exactly the tensors `inputs` and `targets`",
                )
            data = (data["inputs"], data["targets"])
        if isinstance(data, tuple | list):
            self._tensors = _checked(data)
            self._length = len(self._tensors[0])
            self.fingerprint = _name_tensors(self._tensors)
        else:
            self._items = data
            self._length = _length_of(data)
            self.fingerprint = _name_items(data, self._length)
        if self._length == 0:
            raise DataError("the data has no samples", "give at least one")

    def samples_in_epoch(self, epoch: int) -> int:
        """Number of samples."""
        return self._length

    def load(self, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The samples `indices`, in that order."""
        numbers = np.asarray(indices, dtype=np.int64).tolist()
        if self._tensors is not None:
            at = torch.tensor(numbers, dtype=torch.int64)
            inputs, targets = (tensor[at] for tensor in self._tensors)
        else:
            items = cast("Dataset[Any]", self._items)
            inputs, targets = default_collate([tuple(items[number]) for number in numbers])
        return {"inputs": inputs, "targets": targets, "weight": torch.ones(len(numbers))}

    def empty(self) -> Batch:
        """The first sample with weight 0."""
        return {**self.load(0, [0]), "weight": torch.zeros(1)}


def _checked(data: Sequence[Any]) -> tuple[Tensor, Tensor]:
    if len(data) != 2 or not all(isinstance(item, Tensor) and item.dim() > 0 for item in data):
        raise DataError(
            "the data is no pair of tensors", "give (inputs, targets), each with samples as first dimension"
        )
    inputs, targets = data
    if len(inputs) != len(targets):
        raise DataError(
            f"there are {len(inputs)} inputs but {len(targets)} targets", "give one target per input"
        )
    return inputs.detach().cpu(), targets.detach().cpu()


def _length_of(data: Any) -> int:
    try:
        length = len(data)
        first = data[0] if length else (0, 0)
    except TypeError as error:
        raise DataError(
            f"{type(data).__name__} is no map-style data set: {error}",
            "give a data set with `len` and items by number",
        ) from error
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise DataError(f"an item of {type(data).__name__} is no pair", "items must be (input, target)")
    return length


def _name_tensors(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name_items(data: Any, length: int) -> str:
    shapes = [tuple(torch.as_tensor(item).shape) for item in data[0]] if length else []
    return hashlib.blake2b(
        f"{type(data).__qualname__} {length} {shapes}".encode(), digest_size=16
    ).hexdigest()
