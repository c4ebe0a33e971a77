"""Duplicates, split, tokenizers, cache and the manifest."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_inputs import documents, every_document
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tutti.config.data import DataConfig
from tutti.core import DataError
from tutti.data import open_prepared, prepare
from tutti.data import reading as reading_module
from tutti.data import scan as scan_module
from tutti.data import segments as segments_module
from tutti.data.encoder import TextEncoder
from tutti.data.scan import ROW, contained, unique
from tutti.data.split import assign, tail_bounds
from tutti.data.tokenizer import choose_vocabulary, load_for_encoding

Configure = Callable[..., DataConfig]


def write_documents(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def some_texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    words = ["sea", "ship", "whale", "the", "of", "captain", "\n", "storm"]
    return [f"{n} " + " ".join(generator.choice(words, 20)) for n in range(count)]


# ---------------------------------------------------------------- duplicates and split


def test_duplicates_are_left_out_once_and_counted(tmp_path: Path, configure: Configure) -> None:
    texts = some_texts(40)
    path = write_documents(tmp_path / "a.jsonl", [*texts, *texts[:7], texts[3]])
    prepared = prepare(configure(path))
    assert sorted(every_document(prepared)) == sorted(texts)
    assert prepared.counts.duplicates == 8
    assert prepared.counts.documents == 48
    kept = prepare(configure(path, deduplicate=False))
    assert kept.counts.duplicates == 0
    assert len(every_document(kept)) == 48
    parts = [set(documents(kept, split)) for split in ("train", "validation")]
    assert not parts[0] & parts[1]


def test_the_split_goes_by_content_alone(tmp_path: Path, configure: Configure) -> None:
    texts = some_texts(200)
    forward = prepare(configure(write_documents(tmp_path / "a.jsonl", texts), validation=0.2, test=0.1))
    folder = tmp_path / "other"
    folder.mkdir()
    for number, text in enumerate(reversed(texts)):
        (folder / f"{number:03d}.txt").write_text(text)
    backward = prepare(configure(folder, validation=0.2, test=0.1))
    for split in ("train", "validation", "test"):
        assert sorted(documents(forward, split)) == sorted(documents(backward, split))
    assert sorted(every_document(forward)) == sorted(texts)
    shares = [forward.splits[split].bytes / sum(len(text) for text in texts) for split in forward.splits]
    assert np.allclose(shares, [0.7, 0.2, 0.1], atol=0.07)
    assert [choice for choice in forward.choices if "data.split = document: 200 documents" in choice]
    more = prepare(
        configure(write_documents(tmp_path / "b.jsonl", texts + [f"new {t}" for t in texts]), validation=0.2)
    )
    assert set(documents(more, "validation")) >= set(documents(forward, "validation"))


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=3, max_size=60),
    seed=st.integers(0, 2**32),
    shares=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)),
)
@settings(max_examples=100, deadline=None)
def test_every_part_gets_its_share_and_the_order_does_not_matter(
    sizes: list[int], seed: int, shares: tuple[float, float]
) -> None:
    rows = np.zeros(len(sizes), dtype=ROW)
    generator = np.random.default_rng(seed)
    rows["bytes"] = sizes
    rows["hash"] = generator.integers(0, 2**64, (len(sizes), 2), dtype=np.uint64)
    parts = assign(rows, *shares)
    mixed = generator.permutation(len(sizes))
    assert (assign(rows[mixed], *shares) == parts[mixed]).all()
    if (parts == 0).sum() > 1:  # the last document is left to train on
        for part, share in ((1, shares[0]), (2, shares[1])):
            assert rows["bytes"][parts == part].sum() >= share * sum(sizes) / 2 - 1e-6


def test_unique_and_contained_agree_with_sets() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 4, (300, 2), dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    expected = []
    for row in map(tuple, hashes.tolist()):
        expected.append(row not in seen)
        seen.add(row)
    assert unique(hashes).tolist() == expected
    among = hashes[:5]
    assert contained(hashes, among).tolist() == [row in among.tolist() for row in hashes.tolist()]
    assert unique(hashes[:0]).tolist() == contained(hashes[:0], among).tolist() == []


def test_the_tail_of_few_documents(tmp_path: Path, configure: Configure) -> None:
    texts = [text + "\u4e2d\u6587" * 30 for text in some_texts(3)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    prepared = prepare(configure(tmp_path, validation=0.2, test=0.1))
    parts = [documents(prepared, split) for split in ("train", "validation", "test")]
    assert ["".join(stretches) for stretches in zip(*parts, strict=True)] == texts
    for text, *lengths in zip(texts, *(map(len, part) for part in parts), strict=True):
        bounds = tail_bounds(len(text), 0.2, 0.1)
        assert lengths == list(np.diff(bounds))
    for split in ("train", "validation", "test"):
        assert prepared.splits[split].bytes == sum(len(text.encode()) for text in documents(prepared, split))
    assert "only 3 (fewer than 20)" in prepared.choices[0]
    assert tail_bounds(1_115_394, 0.1, 0.0) == (0, 1_003_854, 1_115_394, 1_115_394)  # as nanoGPT cuts it


def test_validation_text_of_its_own(tmp_path: Path, configure: Configure) -> None:
    texts = some_texts(60)
    source = write_documents(tmp_path / "a.jsonl", texts)
    held_out = write_documents(tmp_path / "b.jsonl", [*texts[:4], "another", *texts[:1]])
    prepared = prepare(configure(source, validation_source=str(held_out), test=0.1))
    assert documents(prepared, "train") == texts[4:]
    assert documents(prepared, "validation") == [*texts[:4], "another"]
    assert prepared.splits["test"].tokens == 0
    assert prepared.counts.in_validation == 4
    assert prepared.counts.duplicates == 1


# ---------------------------------------------------------------- tokenizers

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerFast]:
    folder = tmp_path_factory.mktemp("tokenizers")
    text = "".join(f"{text}\n\t<|endoftext|> 中文 é {n}\r\n" for n, text in enumerate(some_texts(50)))
    (folder / "a.txt").write_bytes(text.encode())
    opened = {}
    for kind in ("bpe", "characters"):
        config = DataConfig(
            source=str(folder / "a.txt"), tokenizer=kind, sequence=8, cache=str(folder / "cache")
        )
        prepared = prepare(config)
        assert every_document(prepared) == [text[: int(len(text) * 0.95)], text[int(len(text) * 0.95) :]]
        tokenizer = AutoTokenizer.from_pretrained(str(prepared.tokenizer_directory), local_files_only=True)
        assert tokenizer.eos_token_id == prepared.end_token
        assert len(tokenizer) == prepared.vocabulary
        for split in ("train", "validation"):
            tokens = np.concatenate([prepared.open_tokens(s) for s in prepared.splits[split].shards])
            assert prepared.token_bytes[tokens].sum() == prepared.splits[split].bytes
        assert not [choice for choice in prepared.choices if "not exact" in choice]
        opened[kind] = tokenizer
    return opened


@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_bpe_round_trips_any_text(tokenizers: dict[str, PreTrainedTokenizerFast], text: str) -> None:
    tokenizer = tokenizers["bpe"]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@given(text=st.text("seahip whalet\n\r\t中文é<|endoftext|>", max_size=80))
@settings(max_examples=150, deadline=None)
def test_characters_round_trip_what_they_have_seen(
    tokenizers: dict[str, PreTrainedTokenizerFast], text: str
) -> None:
    tokenizer = tokenizers["characters"]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.decode(tokenizer.encode(f"{text}\u20ac")) == f"{text}<|unknown|>"


@given(texts=st.lists(ANY_TEXT | st.text("seahip whalet\n\r\t中文é<|endoftext|>", max_size=80), max_size=3))
@settings(max_examples=150, deadline=None)
def test_the_table_of_characters_is_the_tokenizer(
    tokenizers: dict[str, PreTrainedTokenizerFast], texts: list[str]
) -> None:
    directory = Path(tokenizers["characters"].name_or_path)
    encoder = TextEncoder(directory)
    assert encoder._table is not None
    expected = load_for_encoding(directory).encode_batch(texts)
    assert [ids.tolist() for ids in encoder.encode(texts)] == [encoding.ids for encoding in expected]
    assert TextEncoder(Path(tokenizers["bpe"].name_or_path))._table is None


def test_characters_are_those_of_the_training_part_only(tmp_path: Path, configure: Configure) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab" * 100 + "aZ" * 10)
    prepared = prepare(configure(path, validation=0.09, sequence=8))
    assert prepared.vocabulary == 4  # a, b, end, unknown
    assert documents(prepared, "validation") == ["a<|unknown|>" * 10]
    assert "bits per byte on validation are not exact" in prepared.choices[-1]


def test_more_characters_than_sixteen_bits_hold(tmp_path: Path, configure: Configure) -> None:
    path = tmp_path / "a.txt"
    text = "".join(chr(code) for code in [*range(32, 0xD800), *range(0xE000, 0x14000)])
    path.write_text(text)
    prepared = prepare(configure(path, validation=0.0))
    assert prepared.vocabulary == len(set(text)) + 2 > 65536
    assert prepared.open_tokens(prepared.splits["train"].shards[0]).dtype == np.uint32
    assert documents(prepared, "train") == [text]
    assert prepared.token_bytes.sum() == len(text.encode())


def hugging_face(folder: Path, kind: str) -> Path:
    """A tokenizer as somebody else might have made it."""
    texts = [text.lower() for text in some_texts(50)]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: object = trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False
        )
        names = {"unk_token": "[UNK]", "sep_token": "[SEP]"}
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        names = {"eos_token": "</s>"}
    tokenizer.train_from_iterator(texts, trainer)
    if kind != "wordpiece":
        tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    if kind == "no-end":
        names = {}
    tokenizer.enable_truncation(5)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(str(folder / kind))
    return folder / kind


def test_hugging_face_directories(tmp_path: Path, configure: Configure) -> None:
    texts = some_texts(60)
    source = write_documents(tmp_path / "a.jsonl", [text + " </s> é" for text in texts])
    prepared = prepare(configure(source, tokenizer=str(hugging_face(tmp_path, "byte-level")), validation=0.0))
    assert documents(prepared, "train") == [text + " </s> é" for text in texts]
    assert prepared.end_token == prepared.vocabulary - 1
    assert prepared.choices == []  # bytes are exact
    lossy = prepare(configure(source, tokenizer=str(hugging_face(tmp_path, "wordpiece")), validation=0.0))
    assert "the tokenizer changes the text" in lossy.choices[-1]
    assert lossy.splits["train"].bytes == prepared.splits["train"].bytes
    with pytest.raises(DataError, match="neither an end token nor a separator"):
        prepare(configure(source, tokenizer=str(hugging_face(tmp_path, "no-end"))))


def test_documents_begin_as_their_tokenizer_begins_texts(tmp_path: Path, configure: Configure) -> None:
    texts = [*some_texts(30), "long " * 400_000]  # the last is encoded in pieces
    source = write_documents(tmp_path / "a.jsonl", texts)
    folder = hugging_face(tmp_path, "byte-level")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.save_pretrained(str(folder))
    plain = prepare(configure(source, tokenizer=str(folder), validation=0.0))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(str(folder))
    begun = prepare(configure(source, tokenizer=str(folder), validation=0.0))
    tokens = begun.open_tokens(begun.splits["train"].shards[0])
    starts = np.load(begun.directory / begun.splits["train"].shards[0].documents_file.name)
    assert (tokens == tokenizer.bos_token_id).nonzero()[0].tolist() == starts.tolist()
    assert len(starts) == 31 and begun.splits["train"].documents == 31
    expected = [[*tokenizer(text)["input_ids"], begun.end_token] for text in texts[:30]]
    each = np.split(np.asarray(tokens), starts[1:])
    assert sorted(one.tolist() for one in each if len(one) < 10_000) == sorted(expected)
    assert begun.splits["train"].tokens == plain.splits["train"].tokens + 31
    assert begun.splits["train"].bytes == plain.splits["train"].bytes and begun.choices == []
    framed = prepare(configure(source, tokenizer=str(folder), validation=0.0), use="masks")
    assert (
        framed.splits["train"].tokens == plain.splits["train"].tokens
    )  # windows of masks are framed themselves


def test_vocabulary_by_the_size_of_the_text(tmp_path: Path, configure: Configure) -> None:
    sizes = {1_000: 512, 1_100_000: 1024, 2_900_000: 2048, 11_000_000: 4096, 31_000_000: 8192, 10**12: 65536}
    assert {size: choose_vocabulary(size)[0] for size in sizes} == sizes
    path = tmp_path / "a.txt"
    path.write_text("ab cd ef " * 300)
    small = prepare(configure(path, tokenizer="bpe"))
    assert small.vocabulary < 512
    assert f"data.vocabulary = {small.vocabulary}: all that the text fills" in small.choices[-1]
    exact = prepare(
        configure(write_documents(tmp_path / "b.jsonl", some_texts(99)), tokenizer="bpe", vocabulary=280)
    )
    assert exact.vocabulary == 280


# ---------------------------------------------------------------- cache


def test_prepared_text_is_found_by_its_listing_and_by_its_content(
    tmp_path: Path, configure: Configure
) -> None:
    texts = some_texts(60)
    path = write_documents(tmp_path / "a.jsonl", texts)
    said: list[str] = []
    first = prepare(configure(path), say=said.append)
    assert any(line.startswith("wrote") for line in said)
    said.clear()
    assert prepare(configure(path, sequence=8), say=said.append).directory == first.directory
    assert said == []  # nothing was read
    os.utime(path, (1, 1))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert prepare(configure(moved), say=said.append).directory == first.directory
    assert said[-1] == "this text was prepared before"
    write_documents(moved, [*texts, "one more"])
    changed = prepare(configure(moved))
    assert changed.directory != first.directory
    assert changed.fingerprint != first.fingerprint
    assert prepare(configure(moved, tokenizer="bpe")).fingerprint != changed.fingerprint
    again = prepare(configure(moved, cache=str(tmp_path / "elsewhere")))
    assert again.fingerprint == changed.fingerprint


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, configure: Configure) -> None:
    path = write_documents(tmp_path / "a.jsonl", some_texts(60))

    def meddle(line: str) -> None:
        if line.startswith("training"):
            write_documents(path, some_texts(61))

    with pytest.raises(DataError, match="changed while it was being prepared"):
        prepare(configure(path), say=meddle)
    assert prepare(configure(path)).counts.documents == 61


@pytest.mark.parametrize("when", ["training", "wrote"])
@pytest.mark.parametrize("kind", ["jsonl", "text"])
@pytest.mark.parametrize("split", ["tail", "document"])
def test_no_edit_is_taken_for_the_text_that_stood_there_before(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch, when: str, kind: str, split: str
) -> None:
    """Nor one that leaves sizes and times as they were, and of which the end was read already."""
    for module, name, value in (
        (scan_module, "SEGMENT_CHARACTERS", 40_000),
        (segments_module, "SHARD_TEXT_BYTES", 40_000),
        (reading_module, "BLOCK_BYTES", 10_001),
    ):
        monkeypatch.setattr(module, name, value)
    texts = [" ".join(some_texts(800)), " ".join(reversed(some_texts(800)))]
    folder = tmp_path / "texts"
    folder.mkdir()
    paths = [folder / f"{number}.{'jsonl' if kind == 'jsonl' else 'txt'}" for number in range(2)]

    def write(texts: list[str]) -> None:
        for path, text in zip(paths, texts, strict=True):
            path.write_text(json.dumps({"text": text}) if kind == "jsonl" else text)
            os.utime(path, (1, 1))

    def meddle(line: str) -> None:
        if line.startswith(when):
            write([text.replace("79", "97") for text in texts])

    config = configure(folder, format=kind, split=split, validation=0.3)
    write(texts)
    with pytest.raises(DataError, match=r"[01]\.(jsonl|txt) changed while it was being prepared"):
        prepare(config, say=meddle)
    write(texts)
    prepared = prepare(config)
    if split == "document":
        assert sorted(every_document(prepared)) == sorted(texts)
    else:
        parts = [documents(prepared, part) for part in ("train", "validation")]
        assert [train + rest for train, rest in zip(*parts, strict=True)] == texts


def test_the_manifest_guards_itself_and_its_files(tmp_path: Path, configure: Configure) -> None:
    config = configure(write_documents(tmp_path / "a.jsonl", some_texts(60)))
    first = prepare(config)
    assert open_prepared(first.directory).manifest == first.manifest
    manifest = first.directory / "manifest.json"
    content = manifest.read_bytes()
    for at in range(0, len(content), 97):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with contextlib.suppress(DataError):
            assert open_prepared(first.directory).manifest == first.manifest
    manifest.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"manifest.json is corrupted"):
        open_prepared(first.directory)
    assert prepare(config).manifest == first.manifest
    for name in (
        "train-00000.npy",
        "token_bytes.npy",
        "tokenizer/tokenizer.json",
        "train-00000.documents.npy",
    ):
        file = first.directory / name
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(DataError, match=name.rpartition("/")[2]):
            open_prepared(first.directory)
        assert prepare(config).manifest == first.manifest
    (first.directory / "manifest.json").unlink()
    with pytest.raises(DataError, match="no prepared text"):
        open_prepared(first.directory)


# ---------------------------------------------------------------- real text


def test_tiny_shakespeare(real_text: Callable[[str], Path], configure: Configure) -> None:
    path = real_text("tinyshakespeare/input.txt")
    prepared = prepare(configure(path, validation=0.1, sequence=64))
    assert prepared.vocabulary == 67  # 65 symbols, end, unknown
    text = path.read_text()
    assert documents(prepared, "train") == [text[: int(0.9 * len(text))]]
    assert documents(prepared, "validation") == [text[int(0.9 * len(text)) :]]


def test_technical_documents(real_text: Callable[[str], Path], configure: Configure) -> None:
    valid = real_text("techdocs_en/valid.jsonl")
    prepared = prepare(configure(valid, tokenizer="bpe", sequence=256))
    lines = [json.loads(line)["text"] for line in valid.read_text().splitlines()]
    assert sorted(every_document(prepared)) == sorted(set(lines))
    assert prepared.vocabulary == 512
    train = prepared.splits["train"]
    assert train.bytes / train.tokens > 1.5


def test_chinese_characters(real_text: Callable[[str], Path], configure: Configure) -> None:
    valid = real_text("chinese_poetry/valid.jsonl")
    prepared = prepare(configure(valid, sequence=64, validation=0.0))
    lines = [json.loads(line)["text"] for line in valid.read_text().splitlines()]
    assert documents(prepared, "train") == list(dict.fromkeys(lines))
    assert prepared.vocabulary > 3000


def test_a_part_of_the_standard_library(tmp_path: Path, configure: Configure) -> None:
    source = Path(json.__file__).parent.parent
    prepared = prepare(configure(f"{source}/a*.py", tokenizer="bpe", sequence=128, split="document"))
    expected = {path.read_text("utf-8") for path in source.glob("a*.py")}
    assert set(every_document(prepared)) == expected - {""}


def test_what_was_chosen_names_the_same_text(tmp_path: Path) -> None:
    """A run's resolved configuration, without `auto`, finds what the original one prepared."""
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"text {number} " * 40)
    config = DataConfig(source=str(tmp_path), sequence=16, cache=str(tmp_path / "cache"))
    prepared = prepare(config)
    resolved = prepared.resolved(config)
    assert resolved.split == "document" and isinstance(resolved.vocabulary, int)
    said: list[str] = []
    again = prepare(resolved, say=said.append)
    assert again.directory == prepared.directory
    assert not said, "nothing was read again"
    assert again.resolved(resolved) == resolved
