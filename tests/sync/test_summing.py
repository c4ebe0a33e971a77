"""Sums as a codec writes them, against NumPy written from the definitions; the same bits everywhere; bytes as said."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ranks import run_ranks
from tutti.core import TrainingError
from tutti.sync import PeerLost, StaticTransport
from tutti.sync.buffer import Buffer, piece_bounds
from tutti.sync.codecs import Blocks, ErrorFeedback, Floats, PowerSGD, Shaped, TopK
from tutti.sync.summing import Summing, bytes_sent

MEMBERS, ROUNDS = 3, 6
SHAPES = {"embedding": (70, 64), "bias": (33,), "matrix": (40, 16, 8), "small": (2, 2)}
CODECS = {
    "fp32": lambda: Floats("fp32"),
    "fp16": lambda: Floats("fp16"),
    "bf16": lambda: Floats("bf16"),
    "int8": lambda: Blocks(8),
    "int4": lambda: Blocks(4),
    "topk": lambda: TopK(1 / 32),
    "powersgd": lambda: PowerSGD(2),
}


def parts() -> list[Shaped]:
    found, start = [], 0
    for name, shape in SHAPES.items():
        found.append(Shaped(name, torch.Size(shape), start))
        start += found[-1].size
    return found


COUNT = sum(part.size for part in parts())


def values_of(rank: int, number: int) -> Tensor:
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(100 * number + rank))


def sums_of(rank: int, names: list[tuple[str, bool]]) -> dict[str, tuple[list[Any], Any, int]]:
    """By codec: the sum of every round, what is owed in the end, and bytes sent."""
    found = {}
    for name, squeeze in names:
        transport = StaticTransport(dist.group.WORLD)
        feedback = ErrorFeedback() if CODECS[name]().needs_feedback else None
        summing = Summing(transport, CODECS[name](), feedback=feedback, squeeze=squeeze)
        results = []
        for number in range(ROUNDS):
            flat = values_of(rank, number)
            summing.sum(Buffer(flat, parts()))
            if feedback is not None:
                feedback.keep()
            results.append(flat.numpy())
        owed = feedback.errors["embedding"].numpy() if feedback is not None else np.zeros(COUNT)
        found[f"{name}{squeeze or ''}"] = (results, owed, transport.meter.sent)
    return found


@pytest.fixture(scope="module")
def sums() -> list[dict[str, tuple[list[Any], Any, int]]]:
    names = [*((name, False) for name in CODECS), ("topk", True), ("int8", True)]
    return run_ranks(MEMBERS, sums_of, names)


@pytest.mark.parametrize("name", [*CODECS, "topkTrue", "int8True"])
def test_all_members_have_the_same_bits(name: str, sums: Any) -> None:
    for member in sums[1:]:
        for ours, theirs in zip(member[name][0], sums[0][name][0], strict=True):
            assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_what_the_formula_says(name: str, sums: Any) -> None:
    for rank, member in enumerate(sums):
        expected = ROUNDS * bytes_sent(CODECS[name](), COUNT, parts(), MEMBERS, rank)
        assert member[name][2] == expected


@pytest.mark.parametrize("name", ["topk", "int8"])
def test_zstd_changes_no_number(name: str, sums: Any) -> None:
    for ours, theirs in zip(sums[0][f"{name}True"][0], sums[0][name][0], strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", ["int8", "int4", "topk", "powersgd"])
def test_sums_and_debts_follow_the_definition(name: str, sums: Any) -> None:
    expected, owed = REFERENCES[name]()
    for number, total in enumerate(expected):
        np.testing.assert_allclose(sums[0][name][0][number], total, atol=2e-5 * np.abs(total).max())
    for rank in range(MEMBERS):
        np.testing.assert_allclose(sums[rank][name][1], owed[rank], atol=1e-4)


@pytest.mark.parametrize("name", CODECS)
def test_nothing_is_lost_but_what_is_owed(name: str, sums: Any) -> None:
    """Everything that arrived and everything that is owed are together what was sent."""
    sent = sum(values_of(rank, number).double() for rank in range(MEMBERS) for number in range(ROUNDS))
    arrived = sum(total.astype(np.float64) for total in sums[0][name][0])
    owed = sum(member[name][1].astype(np.float64) for member in sums)
    loose = {"fp16": 2e-3, "bf16": 2e-2}.get(name, 1e-4)  # plain rounding is not owed
    assert np.abs(arrived + owed - sent.numpy()).max() < loose * np.abs(sent.numpy()).max()


# The definitions in NumPy -----------------------------------------------------------------------------------------


def quantize(values: np.ndarray, bits: int) -> np.ndarray:
    """What is read back after `values` were written in blocks of whole numbers."""
    most, block = 2 ** (bits - 1) - 1, {8: 256, 4: 64}[bits]
    rows = np.pad(values, (0, -len(values) % block)).reshape(-1, block).astype(np.float32)
    scale = np.abs(rows).max(1) / np.float32(most)
    up = ((scale.view(np.int32) + 0xFFFF) & ~np.int32(0xFFFF)).view(np.float32)[:, None]
    numbers = np.clip(np.rint(np.divide(rows, up, where=up > 0, out=np.zeros_like(rows))), -most, most)
    return (numbers * up).reshape(-1)[: len(values)]


def blocks(bits: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    owed = [np.zeros(COUNT, dtype=np.float32) for _ in range(MEMBERS)]
    sums = []
    for number in range(ROUNDS):
        corrected = [values_of(rank, number).numpy() + owed[rank] for rank in range(MEMBERS)]
        owed = [np.zeros(COUNT, dtype=np.float32) for _ in range(MEMBERS)]
        total = np.zeros(COUNT, dtype=np.float32)
        for owner, (start, stop) in enumerate(piece_bounds(COUNT, MEMBERS)):
            piece = np.zeros(stop - start, dtype=np.float32)
            for rank in range(MEMBERS):
                own = corrected[rank][start:stop]
                written = own if rank == owner else quantize(own, bits)
                owed[rank][start:stop] += own - written
                piece += written
            total[start:stop] = quantize(piece, bits)
            owed[owner][start:stop] += piece - total[start:stop]
        sums.append(total)
    return sums, owed


def topk() -> tuple[list[np.ndarray], list[np.ndarray]]:
    owed = [np.zeros(COUNT, dtype=np.float32) for _ in range(MEMBERS)]
    sums = []
    for number in range(ROUNDS):
        total = np.zeros(COUNT, dtype=np.float32)
        for rank in range(MEMBERS):
            corrected = values_of(rank, number).numpy() + owed[rank]
            written = np.zeros_like(corrected)
            for start in range(0, COUNT, 4096):
                chunk = corrected[start : start + 4096]
                places = np.argsort(-np.abs(chunk), kind="stable")[:128]
                written[start + places] = torch.from_numpy(chunk[places]).bfloat16().float().numpy()
            owed[rank] = corrected - written
            total += written
        sums.append(total)
    return sums, owed


def powersgd() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Algorithm 1 of Vogels et al., in float64, for sums."""
    rank_of_code = 2
    right = {}
    for part in parts():
        if part.name in ("embedding", "matrix"):
            columns = part.size // part.shape[0]
            dice = torch.Generator().manual_seed(zlib.crc32(part.name.encode()))
            right[part.name] = torch.randn(columns, rank_of_code, generator=dice).double().numpy()
    owed = [np.zeros(COUNT) for _ in range(MEMBERS)]
    sums = []
    for number in range(ROUNDS):
        corrected = [values_of(rank, number).double().numpy() + owed[rank] for rank in range(MEMBERS)]
        total = np.sum(corrected, axis=0)
        owed = [np.zeros(COUNT) for _ in range(MEMBERS)]
        for part in parts():
            if part.name not in right:
                continue
            piece = slice(part.start, part.start + part.size)
            matrices = [c[piece].reshape(part.shape[0], -1) for c in corrected]
            left, _ = np.linalg.qr(sum(matrix @ right[part.name] for matrix in matrices))
            right[part.name] = sum(matrix.T @ left for matrix in matrices)
            total[piece] = (left @ right[part.name].T).ravel()
            for rank in range(MEMBERS):
                owed[rank][piece] = corrected[rank][piece] - total[piece] / MEMBERS
        sums.append(total)
    return sums, owed


REFERENCES: dict[str, Any] = {
    "int8": lambda: blocks(8),
    "int4": lambda: blocks(4),
    "topk": topk,
    "powersgd": powersgd,
}


# What goes wrong --------------------------------------------------------------------------------------------------


class Two(StaticTransport):
    """A transport of two whose peer sends `answer`."""

    def __init__(self, answer: Any) -> None:
        super().__init__(None)
        self._answer = answer

    @property
    def size(self) -> int:
        return 2

    def all_to_all(self, outgoing: Any, incoming: Any, largest: int | None = None) -> list[Tensor]:
        return self._answer(outgoing, incoming)


@pytest.mark.parametrize("name", ["int8", "topk"])
def test_a_corrupt_payload_is_never_added(name: str) -> None:
    def spoiled(outgoing: Any, incoming: Any) -> list[Tensor]:
        other = outgoing[1].clone()
        other[100] ^= 4
        return [outgoing[0], other]

    feedback = ErrorFeedback()
    summing = Summing(Two(spoiled), CODECS[name](), feedback=feedback, squeeze=False)
    flat = torch.ones(4096 * 2)
    with pytest.raises(PeerLost, match="checksum"):
        summing.sum(Buffer(flat, [Shaped("w", flat.shape, 0)]))
    assert torch.equal(flat, torch.ones_like(flat))
    feedback.drop()
    assert not feedback.errors


@pytest.mark.parametrize("name", ["bf16", "int8", "topk", "powersgd"])
def test_what_is_not_finite_is_refused_by_the_name_of_its_parameter(name: str) -> None:
    flat = torch.ones(COUNT)
    flat[parts()[2].start + 7] = float("nan")
    summing = Summing(Two(None), CODECS[name](), feedback=ErrorFeedback(), squeeze=False)
    with pytest.raises(TrainingError, match=f"nan in what matrix sends.*codec {name}"):
        summing.sum(Buffer(flat, parts()))
