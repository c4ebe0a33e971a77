"""Codecs: what comes back is what was sent, to within what each may lose; what cannot be sent is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from tutti.sync.codecs import Blocks, Codec, Corrupt, ErrorFeedback, Floats, NotFinite, Sealer, TopK, unseal

CODECS: list[Codec] = [
    Floats("fp32"), Floats("fp16"), Floats("bf16"), Blocks(8), Blocks(4), TopK(1 / 32), TopK(1 / 64, bits=2),
]  # fmt: skip
NAMES = [f"{codec.name}{getattr(codec, 'bits', '')}" for codec in CODECS]

FAR = 60000.0  # what fp16 can write
numbers = some.one_of(
    some.floats(-FAR, FAR, width=32),
    some.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1.17e-38, FAR, -FAR]),
)
vectors = some.lists(numbers, max_size=700).map(lambda values: torch.tensor(values, dtype=torch.float32))


def reference(codec: Codec, values: np.ndarray) -> np.ndarray:
    """Most that each number may be off, from the definition of the code."""
    if codec.name == "fp32":
        return np.zeros_like(values)
    if codec.name in ("fp16", "bf16"):
        digits, least = (11, 2.0**-24) if codec.name == "fp16" else (8, 2.0**-133)
        return np.maximum(np.abs(values) * 2.0**-digits, least / 2)
    assert isinstance(codec, Blocks)
    most = 2 ** (codec.bits - 1) - 1
    padded = np.pad(values, (0, -len(values) % codec.block)).reshape(-1, codec.block)
    # Half a scale; the scale is rounded up to eight binary digits.
    scale = np.abs(padded).max(1, initial=0.0) / most * (1 + 2.0**-7) + 2.0**-133
    return np.repeat(scale / 2 * (1 + 1e-6), codec.block)[: len(values)]


@pytest.mark.parametrize("codec", CODECS[:5], ids=NAMES[:5])
@given(values=vectors)
@settings(max_examples=60, deadline=None)
def test_every_number_is_as_near_as_the_code_allows(codec: Codec, values: Tensor) -> None:
    payload = codec.encode(values)
    assert payload.dtype == torch.uint8 and len(payload) == codec.payload_bytes(len(values))
    back = codec.decode(payload, len(values))
    assert back.shape == values.shape and back.dtype == torch.float32
    off = np.abs(back.double().numpy() - values.double().numpy())
    assert (off <= reference(codec, values.double().numpy())).all()


@pytest.mark.parametrize("codec", CODECS[5:6], ids=NAMES[5:6])
@given(values=vectors, repeat=some.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_topk_sends_the_largest_of_each_chunk_and_nothing_else(
    codec: TopK, values: Tensor, repeat: int
) -> None:
    values = values.repeat(repeat)
    payload = codec.encode(values)
    assert len(payload) == codec.payload_bytes(len(values))
    back = codec.decode(payload, len(values)).numpy()
    for start in range(0, len(values), 4096):
        chunk, found = values[start : start + 4096].numpy(), back[start : start + 4096]
        sent = found != 0
        assert sent.sum() <= codec.kept
        left_out = np.abs(chunk[~sent]).max(initial=0.0)
        order = np.sort(np.abs(chunk))[::-1]
        threshold = order[codec.kept - 1] if len(order) >= codec.kept else 0.0
        assert (np.abs(chunk[sent]) >= threshold).all()
        # Whatever is larger than the smallest that was sent was sent, unless bf16 made it nothing.
        assert left_out <= threshold or left_out < 1e-40
        np.testing.assert_allclose(found[sent], chunk[sent], rtol=2**-8, atol=2.0**-133)


def test_two_bits_go_where_bf16_goes_with_the_same_sign() -> None:
    values = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    exact, rough = (TopK(1 / 64, bits=bits) for bits in (16, 2))
    exact, rough = (codec.decode(codec.encode(values), len(values)) for codec in (exact, rough))
    assert torch.equal(exact.sign(), rough.sign())
    assert (rough - exact).norm() < 0.2 * exact.norm()


def test_two_bits_keep_sign_and_mean() -> None:
    """The mean of the larger, and of the smaller ones, as NumPy has it."""
    codec = TopK(4 / 4096, bits=2)
    values = np.zeros(4096, dtype=np.float32)
    values[[5, 70, 900, 4095]] = [1.0, -2.0, 8.0, -10.0]
    back = codec.decode(codec.encode(torch.from_numpy(values)), 4096).numpy()
    np.testing.assert_array_equal(back[[5, 70, 900, 4095]], [1.5, -1.5, 9.0, -9.0])
    assert np.count_nonzero(back) == 4


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_any_layout_in_memory(codec: Codec) -> None:
    """Strided, one element, none."""
    strided = torch.arange(1200, dtype=torch.float32)[::3]
    assert torch.equal(codec.encode(strided), codec.encode(strided.clone()))
    for count in (0, 1):
        values = torch.full((count,), 3.0)
        torch.testing.assert_close(codec.decode(codec.encode(values), count), values, rtol=2**-7, atol=0)


@pytest.mark.parametrize("codec", CODECS[1:], ids=NAMES[1:])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_refused_with_its_place(codec: Codec, bad: float) -> None:
    values = torch.ones(5000)
    values[4321] = bad
    with pytest.raises(NotFinite) as refused:
        codec.encode(values)
    assert refused.value.index == 4321


def test_what_fp16_cannot_hold_is_refused() -> None:
    with pytest.raises(NotFinite, match="too large for fp16"):
        Floats("fp16").encode(torch.tensor([1.0, 70000.0]))


def test_sizes_are_what_the_formats_say() -> None:
    """Bytes of a million numbers."""
    expected = {"fp32": 4e6, "bf16": 2e6, "int8": 1e6 * (1 + 2 / 256), "int4": 1e6 * (0.5 + 2 / 64)}
    for codec in (Floats("fp32"), Floats("bf16"), Blocks(8), Blocks(4)):
        assert codec.payload_bytes(10**6) == pytest.approx(expected[codec.name], rel=2e-4)
    chunks = 245
    assert TopK(1 / 64, bits=2).payload_bytes(10**6) == chunks * (64 * 12 // 8 + 64 * 2 // 8 + 4)


# Error feedback ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS[3:], ids=NAMES[3:])
def test_with_feedback_everything_arrives_in_the_end(codec: Codec) -> None:
    """Of a constant vector, after n rounds n times as much has arrived, to within what is still owed."""
    values = torch.randn(9000, generator=torch.Generator().manual_seed(0))
    feedback, arrived = ErrorFeedback(), torch.zeros(9000)
    for _ in range(50):
        debts = feedback.of("x")
        corrected = debts.correct(values)
        received = codec.decode(codec.encode(corrected), len(values))
        debts.owe(corrected - received)
        feedback.keep()
        arrived += received
    torch.testing.assert_close(arrived + feedback.errors["x"], 50 * values, rtol=1e-4, atol=1e-3)
    # What is owed stays bounded: it is a few rounds' worth of what one round cannot send.
    assert feedback.errors["x"].norm() < (4 if isinstance(codec, Blocks) else 90) * values.norm()


def test_an_exchange_that_did_not_count_takes_nothing_off_the_debt() -> None:
    feedback = ErrorFeedback(decay=0.5)
    feedback.of("x").owe(torch.tensor([4.0]))
    feedback.keep()
    feedback.of("x").owe(torch.tensor([0.0]))
    feedback.drop()
    assert feedback.of("x").correct(torch.tensor([1.0])).item() == 3.0


# Packets ----------------------------------------------------------------------------------------------------------


@given(content=some.binary(max_size=3000), squeeze=some.booleans())
@settings(max_examples=60, deadline=None)
def test_a_packet_gives_back_its_payload(content: bytes, squeeze: bool) -> None:
    payload = torch.tensor(list(content), dtype=torch.uint8)
    assert torch.equal(unseal(Sealer(squeeze=squeeze).seal(payload), len(payload)), payload)


@given(place=some.integers(0, 10**6), flip=some.integers(1, 255), squeeze=some.booleans())
@settings(max_examples=100, deadline=None)
def test_one_wrong_byte_is_found(place: int, flip: int, squeeze: bool) -> None:
    payload = (torch.arange(999) % 7).to(torch.uint8)
    packet = Sealer(squeeze=squeeze).seal(payload)
    packet[place % len(packet)] ^= flip
    with pytest.raises(Corrupt):
        unseal(packet, 999)


@pytest.mark.parametrize("length", [0, 3, 15, 16, 500])
def test_a_truncated_packet_is_found(length: int) -> None:
    packet = Sealer(squeeze=False).seal(torch.zeros(999, dtype=torch.uint8))
    with pytest.raises(Corrupt):
        unseal(packet[:length], 999)


def test_squeezing_stops_when_it_does_not_help_and_is_tried_again() -> None:
    sealer = Sealer(squeeze=True)
    noise = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert len(sealer.seal(torch.zeros(4000, dtype=torch.uint8))) < 100
    assert len(sealer.seal(noise)) == 4016
    zeros = [len(sealer.seal(torch.zeros(4000, dtype=torch.uint8))) for _ in range(100)]
    assert zeros[0] == 4016 and zeros[-1] < 100
