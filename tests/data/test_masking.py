"""What a masked language model has to guess: how much, whole words, spans, and what is seen instead."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from encoders import write_encoder
from tutti.config.data import DataConfig
from tutti.core import DataError
from tutti.data import MaskedSource, prepare
from tutti.data.masking import By, choose, disguise
from tutti.data.tokenizer import load_for_encoding, save_tokenizer, train_bpe, train_characters, vocabulary_of
from tutti.data.words import WordEdges

POEM = "床前明月光，疑是地上霜。 The quick brown foxes' café — naïve, isn't it? 12345 x_1\n" * 40


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=60),
    share=st.floats(0.01, 0.99),
    by=st.sampled_from(["tokens", "words", "spans"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_as_much_as_was_asked_for_and_words_whole(sizes: list[int], share: float, by: By, seed: int) -> None:
    words = np.repeat(np.arange(len(sizes)), sizes)
    words = np.insert(words, len(words) // 2, -1)  # a mark in the middle
    units = choose(words, share, by, np.random.default_rng(seed))
    assert units[words == -1] == 0
    places = int((words >= 0).sum())
    wanted, got = max(1, round(share * places)), int((units > 0).sum())
    if by == "tokens":
        assert got == wanted
        return
    for word in range(len(sizes)):  # all of it or nothing, and as one unit
        assert len(set(units[words == word])) == 1
    assert got >= 1
    if (
        by == "words"
    ):  # no word that has room is left out; only a single one may be longer than what was asked for
        free = [size for word, size in enumerate(sizes) if not units[words == word].any()]
        assert got <= wanted or (got == min(sizes) and len(set(units)) == 2)
        assert all(size > wanted - got for size in free) or got >= wanted
    else:
        for unit in set(units[units > 0]):  # a stretch of at most ten words, without a hole
            inside = np.unique(words[units == unit])
            assert np.array_equal(inside, np.arange(inside[0], inside[-1] + 1)) and len(inside) <= 10


def test_spans_are_as_long_as_in_the_paper() -> None:
    lengths: list[int] = []
    for seed in range(400):
        units = choose(np.arange(512), 0.15, "spans", np.random.default_rng(seed))
        assert int((units > 0).sum()) == 77
        lengths += np.bincount(units)[1:-1].tolist()  # the last one was cut to fit
    expected = sum(min(n, 10) * 0.2 * 0.8 ** (n - 1) for n in range(1, 200))  # 4.46; spans run into others
    assert abs(np.mean(lengths) - expected) < 0.5
    assert max(lengths) == 10


@pytest.mark.parametrize("together", [False, True])
def test_eight_of_ten_are_hidden(together: bool) -> None:
    tokens = np.random.default_rng(0).integers(10, 1010, 100_000)
    units = np.arange(100_000) // 2 + 1  # pairs
    seen = disguise(tokens, units, 3, np.arange(10, 1010), np.random.default_rng(1), together=together)
    assert abs((seen == 3).mean() - 0.8) < 0.01
    assert abs((seen == tokens).mean() - (0.1 + 0.1 / 1000)) < 0.01
    alike = (seen[::2] == 3) == (seen[1::2] == 3)
    assert alike.all() if together else 0.6 < alike.mean() < 0.75  # 0.8² + 0.2² = 0.68


def words_of(tokenizer_directory: Path, text: str) -> list[str]:
    """The pieces of `text` that are one word each, put together again."""
    tokenizer = load_for_encoding(tokenizer_directory)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    numbers = np.array(encoding.ids)
    words = WordEdges.of(tokenizer, vocabulary_of(tokenizer)).words(numbers)
    spans = [np.flatnonzero(words == word) for word in range(words[-1] + 1)]
    return [text[encoding.offsets[span[0]][0] : encoding.offsets[span[-1]][1]] for span in spans]


def test_words_of_a_wordpiece_tokenizer_are_those_of_transformers(tmp_path: Path) -> None:
    write_encoder(tmp_path / "bert")
    text = "Why was my zebra-card, no. 5x, stolen in New York? it's late!"
    fast = AutoTokenizer.from_pretrained(tmp_path / "bert")(text, add_special_tokens=False)
    tokenizer = load_for_encoding(tmp_path / "bert")
    ours = WordEdges.of(tokenizer, vocabulary_of(tokenizer)).words(np.array(fast["input_ids"]))
    assert ours.tolist() == fast.word_ids()


@pytest.mark.parametrize("vocabulary", [257, 320, 400])
def test_words_of_byte_level_tokens(tmp_path: Path, vocabulary: int) -> None:
    save_tokenizer(train_bpe([POEM], vocabulary, exactly=False), tmp_path)
    words = [
        word.strip() for word in words_of(tmp_path, "The quick foxes 12345, 霜地 Wörter") if word.strip()
    ]
    assert words[:4] == ["The", "quick", "foxes", "12345"]
    assert words[4] == ","
    assert words[5:7] == ["霜", "地"]  # bytes of one character stay together, characters do not


def test_words_of_characters(tmp_path: Path) -> None:
    save_tokenizer(train_characters([POEM]), tmp_path)
    words = words_of(tmp_path, "quick foxes，明月")
    assert words == ["quick", " ", "foxes", "，", "明", "月"]


@pytest.fixture
def source_of(configure: Callable[..., DataConfig], tmp_path: Path) -> Callable[..., MaskedSource]:
    path = tmp_path / "poem.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{number} {POEM[:600]}"}) for number in range(40)))

    def make(by: By = "words", share: float = 0.3, shift: bool = True, **fields: object) -> MaskedSource:
        prepared = prepare(configure(path, sequence=32, **fields), use="masks")
        return MaskedSource(prepared, "train", 32, 7, share=share, by=by, shift=shift)

    return make


def test_a_sample_is_framed_and_says_what_was_hidden(source_of: Callable[..., MaskedSource]) -> None:
    source = source_of("tokens")
    marks, batch = source.marks, source.load(0, [0, 5, 9])
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    assert ids.shape == labels.shape == (3, 32)
    assert (ids[:, 0] == marks.first).all() and (ids[:, -1] == marks.last).all()
    assert (labels[:, [0, -1]] == -100).all()
    plain = source._windows.load(0, [0, 5, 9])["input_ids"].numpy()
    hidden = labels != -100
    assert np.array_equal(np.where(hidden, labels, ids)[:, 1:-1], plain)  # what is not hidden is as it was
    assert (hidden.sum(1) == round(0.3 * 30)).all() or (plain == source._windows.end_token).any()
    assert not hidden[:, 1:-1][plain == source._windows.end_token].any()
    assert set(ids[hidden]) - {marks.mask} <= set(marks.ordinary)
    assert source.load(0, [5])["input_ids"].equal(
        batch["input_ids"][1:2]
    )  # whoever asks, in whatever company
    again = pickle.loads(pickle.dumps(source))
    assert again.load(3, [1])["input_ids"].equal(source.load(3, [1])["input_ids"])
    empty = source.empty()
    assert (empty["labels"] == -100).all() and empty["input_ids"].shape == (1, 32)


def test_every_epoch_hides_something_else_but_not_of_what_is_kept_aside(
    source_of: Callable[..., MaskedSource],
) -> None:
    trained, kept = source_of(), source_of(shift=False)
    assert not trained.load(1, [0])["labels"].equal(trained.load(0, [0])["labels"])
    assert kept.load(1, [0])["labels"].equal(kept.load(0, [0])["labels"])
    names = {source_of(by=by, share=share).fingerprint for by in ("words", "spans") for share in (0.15, 0.3)}
    assert len(names) == 4  # a resume with other masks is refused


def test_a_tokenizer_without_a_mask_is_refused(configure: Callable[..., DataConfig], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(POEM)
    prepared = prepare(configure(tmp_path / "text.txt"))
    with pytest.raises(DataError, match="has no mask token"):
        MaskedSource(prepared, "train", 16, 0, share=0.3, by="words", shift=True)
    assert prepare(configure(tmp_path / "text.txt"), use="masks").directory != prepared.directory
