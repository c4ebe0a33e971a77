"""Windows, labels and positions against a slow reference that is obviously right."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tutti.config.data import DataConfig
from tutti.core import DataError, SampleSource
from tutti.data import GlobalOrder, Prepared, TokenSource, prepare
from tutti.data import segments as segments_module

Configure = Callable[..., DataConfig]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SHARD_TEXT_BYTES", 200)


@pytest.fixture
def prepared(tmp_path: Path, configure: Configure, small_shards: None) -> Prepared:
    generator = np.random.default_rng(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(60):
        letters = generator.choice(list("abcdefgh \n"), size=generator.integers(1, 90))
        (folder / f"{number:02d}.txt").write_text("".join(letters))
    return prepare(configure(folder, validation=0.2))


def stream_and_documents(prepared: Prepared, split: str) -> tuple[list[int], list[int]]:
    """All tokens, and for each the number of its document, from the shards' own list of starts."""
    tokens: list[int] = []
    starts: list[int] = []
    for shard in prepared.splits[split].shards:
        starts += [len(tokens) + int(start) for start in prepared.open_documents(shard)]
        tokens += prepared.open_tokens(shard).tolist()
    documents = [sum(start <= place for start in starts) for place in range(len(tokens))]
    return tokens, documents


@pytest.mark.parametrize("sequence", [1, 7, 16, 150])
@pytest.mark.parametrize(("split", "shift"), [("train", True), ("validation", False)])
def test_every_window_is_what_it_should_be(
    prepared: Prepared, sequence: int, split: str, shift: bool
) -> None:
    source = TokenSource(prepared, split, sequence, seed=5, shift=shift)
    tokens, documents = stream_and_documents(prepared, split)
    assert len(prepared.splits["train"].shards) > 3
    for epoch in range(3):
        samples = source.samples_in_epoch(epoch)
        batch = source.load(epoch, range(samples))
        assert all(tensor.shape == (samples, sequence) for tensor in batch.values())
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        for sample in range(samples):
            start = source.offset(epoch) + sample * sequence
            position = 0
            for place in range(sequence):
                at = start + place
                new_document = place > 0 and documents[at] != documents[at - 1]
                position = 0 if new_document or place == 0 else position + 1
                same = documents[at + 1] == documents[at]
                assert batch["input_ids"][sample, place] == tokens[at]
                assert batch["labels"][sample, place] == (tokens[at + 1] if same else -100)
                assert batch["position_ids"][sample, place] == position
        assert 0 <= len(tokens) - 1 - source.offset(epoch) - samples * sequence < sequence


def test_the_end_token_is_a_target_and_nothing_is_learnt_from_it(prepared: Prepared) -> None:
    source = TokenSource(prepared, "train", 16, 0, True)
    batch = source.load(0, range(source.samples_in_epoch(0)))
    ends = batch["input_ids"] == prepared.end_token
    assert ends.any()
    assert (batch["labels"][ends] == -100).all()
    assert (batch["labels"] == prepared.end_token).any()
    assert (batch["labels"][~ends] >= 0).all()


def test_offsets_differ_between_epochs_but_never_cost_the_only_sample(prepared: Prepared) -> None:
    source = TokenSource(prepared, "train", 32, 0, True)
    offsets = [source.offset(epoch) for epoch in range(20)]
    assert offsets[0] == 0
    assert len(set(offsets)) > 8
    assert max(offsets) < 32
    fixed = TokenSource(prepared, "train", 32, 0, False)
    assert [fixed.offset(epoch) for epoch in range(20)] == [0] * 20
    tokens = prepared.splits["train"].tokens
    nearly_all = TokenSource(prepared, "train", tokens - 3, 0, True)
    assert all(nearly_all.samples_in_epoch(epoch) == 1 for epoch in range(20))
    for epoch in range(20):
        nearly_all.load(epoch, [0])


def test_it_is_a_sample_source(prepared: Prepared) -> None:
    source = TokenSource(prepared, "train", 16, 0, True)
    assert isinstance(source, SampleSource)
    empty = source.empty()
    assert {name: tuple(tensor.shape) for name, tensor in empty.items()} == {
        "input_ids": (1, 16),
        "labels": (1, 16),
        "position_ids": (1, 16),
    }
    assert (empty["labels"] == -100).all()
    nothing = source.load(0, [])
    assert nothing["input_ids"].shape == (0, 16)
    with pytest.raises(IndexError):
        source.load(0, [source.samples_in_epoch(0)])
    for other in (
        TokenSource(prepared, "validation", 16, 0, True),
        TokenSource(prepared, "train", 17, 0, True),
        TokenSource(prepared, "train", 16, 1, True),
    ):
        assert other.fingerprint != source.fingerprint
    assert TokenSource(prepared, "train", 16, 0, True).fingerprint == source.fingerprint


def test_it_travels_to_another_process_without_the_text(prepared: Prepared) -> None:
    source = TokenSource(prepared, "train", 16, 0, True)
    before = source.load(0, [3, 1])
    after = pickle.loads(pickle.dumps(source)).load(0, [3, 1])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_little_text_says_the_numbers(prepared: Prepared) -> None:
    tokens = prepared.splits["train"].tokens
    TokenSource(prepared, "train", tokens - 1, 0, True)
    with pytest.raises(
        DataError, match=f"{tokens:,} tokens .* one sample of data.sequence . 1 = {tokens + 1:,}"
    ):
        TokenSource(prepared, "train", tokens, 0, True)
    with pytest.raises(DataError, match="no part 'trian'"):
        TokenSource(prepared, "trian", 8, 0, True)


def test_one_flipped_byte_in_a_shard_is_found_and_only_it_is_rebuilt(
    prepared: Prepared, tmp_path: Path, configure: Configure
) -> None:
    shard = prepared.splits["train"].shards[1]
    path = prepared.directory / shard.tokens_file.name
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    source = TokenSource(prepared, "train", 16, 0, True)
    source.load(0, [0])
    with pytest.raises(DataError, match=rf"{path.name} is corrupted"):
        source.load(0, range(source.samples_in_epoch(0)))
    path.unlink()
    said: list[str] = []
    again = prepare(configure(tmp_path / "text", validation=0.2), say=said.append)
    assert again.fingerprint == prepared.fingerprint
    assert [line for line in said if line.startswith("wrote")] == [
        line for line in said if line.startswith(f"wrote {path.stem}:")
    ]
    TokenSource(again, "train", 16, 0, True).load(0, range(source.samples_in_epoch(0)))


def test_loading_is_fast(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox\n" * 50_000)
    source = TokenSource(prepare(configure(tmp_path / "a.txt")), "train", 256, 0, True)
    [(epoch, indices)] = GlobalOrder(0, source.samples_in_epoch).locate(0, 64)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        source.load(epoch, indices)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3  # 0.3 ms when the machine is at rest
