"""Text that is made ready first: killed and gone on with, spread over processes, mixed, held apart from what judges."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import fsspec.implementations.memory
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tutti.config.data import DataConfig
from tutti.core import DataError
from tutti.data import Prepared, open_prepared, prepare, staging
from tutti.data import encoder as encoder_module
from tutti.data.cleaning.step import Step
from tutti.data.contamination import make_index
from tutti.data.encoder import TextEncoder
from tutti.data.listing import open_binary
from tutti.data.mixture import _within
from tutti.data.remote import RemoteCache
from tutti.data.tokenizer import load_for_encoding, save_tokenizer, train_bpe

Configure = Callable[..., DataConfig]


def texts_of(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in draw.integers(0, 3000, 60)) for _ in range(count)]


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents(prepared: Prepared, part: str = "train") -> list[str]:
    tokenizer = load_for_encoding(prepared.tokenizer_directory)
    shards = prepared.splits[part].shards
    tokens = np.concatenate([np.zeros(0, np.int64), *(prepared.open_tokens(shard) for shard in shards)])
    ends = np.flatnonzero(tokens == prepared.end_token)
    return [
        tokenizer.decode(some[1 * (n > 0) :].tolist()) for n, some in enumerate(np.split(tokens, ends)[:-1])
    ]


def test_a_preparation_that_was_killed_goes_on_with_the_units_that_are_ready(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "UNIT_BYTES", 3000)
    source = write(tmp_path / "a.jsonl", texts_of(60))
    config = configure(source, clean={"shortest": 10}, split="document")
    original, made = staging._stage_unit, list[str]()

    def until_the_fourth(job: staging.StageJob, steps: list[Step], unit: staging.Unit) -> staging.UnitRecord:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(unit.name)
        return original(job, steps, unit)

    monkeypatch.setattr(staging, "_stage_unit", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    half = next((Path(config.cache) / "ready").glob("*/source/unit-000001.text"))
    half.write_bytes(half.read_bytes()[:-5])  # the last write before the power went
    again: list[str] = []

    def watched(job: staging.StageJob, steps: list[Step], unit: staging.Unit) -> staging.UnitRecord:
        again.append(unit.name)
        return original(job, steps, unit)

    monkeypatch.setattr(staging, "_stage_unit", watched)
    prepared = prepare(config)
    assert made == ["unit-000000", "unit-000001", "unit-000002", "unit-000003"]
    assert "unit-000001" in again and not {"unit-000000", "unit-000002", "unit-000003"} & set(again)
    shutil.rmtree(config.cache)
    assert prepare(config).fingerprint == prepared.fingerprint


def test_a_full_disk_is_one_clear_error(tmp_path: Path, configure: Configure) -> None:
    from tutti.core import RunError

    source = write(tmp_path / "a.jsonl", texts_of(30))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "ready").write_text("a file where a directory should be")
    with pytest.raises(RunError, match="cannot be written"):
        prepare(configure(source, clean={"shortest": 10}))


def test_a_mixture_has_the_shares_that_were_asked_for(tmp_path: Path, configure: Configure) -> None:
    sources = [write(tmp_path / "a.jsonl", texts_of(300, 1)), write(tmp_path / "b.jsonl", texts_of(100, 2))]
    given = [set(texts_of(300, 1)), set(texts_of(100, 2))]
    plain = prepare(configure(sources, validation=0.1, split="document"))
    mixed = prepare(configure(sources, weights=[0.3, 0.7], validation=0.1, split="document"))
    assert documents(mixed, "validation") == documents(plain, "validation")
    held = documents(plain), documents(mixed)
    counted = Counter(held[1])
    bytes_of = [sum(len(text) * counted[text] for text in some) for some in given]
    assert bytes_of[0] / sum(bytes_of) == pytest.approx(0.3, abs=0.01)
    assert sum(bytes_of) == pytest.approx(sum(map(len, held[0])), rel=0.01)
    # The poorer one is repeated evenly, of the richer one a part is taken, each once.
    there = [[counted[text] for text in set(held[0]) & some] for some in given]
    assert set(there[0]) == {0, 1} and set(there[1]) <= {2, 3}
    assert any("a.jsonl" in choice and "30.0 %" in choice for choice in mixed.choices)
    other_way_round = prepare(configure(sources[::-1], weights=[0.7, 0.3], validation=0.1, split="document"))
    assert Counter(documents(other_way_round)) == counted


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.5, 0.4], r"add up to 0.9, not to 1; in proportion they are \[0.556, 0.444\]"),
        ([1.0], "1 numbers and source 2 entries"),
        ([1.5, -0.5], "shares of 0 or more"),
    ],
)
def test_weights_that_cannot_be(weights: list[float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig(source=["a", "b"], weights=weights)


def test_a_weight_for_nothing_is_refused(tmp_path: Path, configure: Configure) -> None:
    sources = [write(tmp_path / "a.jsonl", texts_of(30)), write(tmp_path / "b.jsonl", texts_of(30))]
    with pytest.raises(DataError, match=r"weights gives 0.5 to (.*)b.jsonl, which has no text"):
        prepare(configure(sources, weights=[0.5, 0.5]))  # all of b is in a already


def test_training_documents_that_hold_what_is_judged_by_are_left_out(
    tmp_path: Path, configure: Configure
) -> None:
    clean = texts_of(80)
    exam = texts_of(3, seed=9)
    licence = " ".join(f"licence{n}" for n in range(40))
    leaked = [
        clean[0] + " " + exam[0],  # all of it, among other text
        " ".join(exam[1].split()[:40]),  # most of it
    ]
    innocent = [" ".join(exam[2].split()[:20]) + " " + clean[1][::-1], clean[2] + " " + licence]
    exams = write(tmp_path / "exam.jsonl", [*exam, texts_of(1, seed=8)[0] + " " + licence])
    source = write(tmp_path / "a.jsonl", [*clean, *leaked, *innocent])
    prepared = prepare(
        configure(source, validation=0.0, clean={"decontaminate": 13, "against": [str(exams)]})
    )
    assert sorted(documents(prepared)) == sorted([*clean, *innocent])
    report = prepared.manifest.steps[-1]
    assert (report.step, report.seen, report.dropped) == ("decontaminate", 84, 2)
    assert f"like {exams}:1" in report.examples[0].text
    held = prepare(configure(source, validation_source=str(exams), clean={"decontaminate": 13}))
    assert sorted(documents(held)) == sorted([*clean, *innocent])


def test_texts_to_compare_with_are_changed_as_those_to_learn_from_are(
    tmp_path: Path, configure: Configure
) -> None:
    pytest.importorskip("ftfy")
    texts = [text.replace("w", "é") for text in texts_of(30)]
    mailed = [" ".join(f"{word} someone{n}@example.com" for n, word in enumerate(texts[2].split()))]
    source = write(tmp_path / "a.jsonl", [*texts[:2], *mailed, *texts[3:]])
    clean = {"preset": "standard", "redact": ["EMAIL_ADDRESS"], "against": [str(tmp_path / "exam.jsonl")]}
    config = configure(source, validation=0.0, clean=clean)
    exams = [texts[0], unicodedata.normalize("NFD", texts[0]), texts[0].encode().decode("latin-1"), mailed[0]]
    for exam in exams:
        write(tmp_path / "exam.jsonl", [exam])
        assert prepare(config).manifest.steps[-1].dropped == 1, exam


def test_an_index_of_much_text_keeps_a_part_of_it_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from tutti.data import contamination

    draw = np.random.default_rng(3)
    long = [" ".join(f"v{word}" for word in draw.integers(0, 9000, 2000)) for _ in range(20)]
    short = texts_of(5)
    asked = [long[3][:8000], long[4] + " more", short[2], "nothing of that " * 9, *texts_of(3, seed=77)]
    whole = make_index([*long, *short], 13)
    monkeypatch.setattr(contamination, "_MOST", 3000)
    part = make_index([*long, *short], 13)
    assert whole.every == 1 and part.every > 1 and len(part.hashes) < 4000 < len(whole.hashes)
    assert whole.contaminated(asked).tolist() == [3, 4, 22, -1, -1, -1, -1]
    assert part.contaminated(asked).tolist() == whole.contaminated(asked).tolist()


def test_short_documents_to_compare_with_leave_the_long_ones_their_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tutti.data import contamination

    draw = np.random.default_rng(4)
    long = [" ".join(f"v{word}" for word in draw.integers(0, 9000, 2000)) for _ in range(2)]
    piece = " ".join(long[1].split()[100:150])  # short itself
    monkeypatch.setattr(contamination, "_MOST", 1500)
    index = make_index([*texts_of(60), *long], 13)
    assert index.every == 4, "48 sequences of each short one do not count"
    asked = [long[0][:8000], piece, texts_of(60)[7], *texts_of(3, seed=78)]
    assert index.contaminated(asked).tolist() == [60, 61, 7, -1, -1, -1]


def test_other_text_to_compare_with_is_another_preparation(tmp_path: Path, configure: Configure) -> None:
    source, exam = write(tmp_path / "a.jsonl", texts_of(40)), tmp_path / "exam.jsonl"
    config = configure(source, validation=0.0, clean={"decontaminate": 13, "against": [str(exam)]})
    write(exam, texts_of(2, seed=9))
    assert prepare(config).manifest.steps[-1].dropped == 0
    write(exam, [*texts_of(2, seed=9), texts_of(40)[5]])
    assert prepare(config).manifest.steps[-1].dropped == 1


def test_a_mixture_of_large_documents_is_as_near_as_whole_ones_come_or_refused(
    tmp_path: Path, configure: Configure
) -> None:
    sizes, order = np.array([50, 900, 30, 400, 20, 7]), np.arange(6)
    assert sorted(_within(order, sizes, 110.0)) == [0, 2, 4, 5]  # what is too large is passed over
    assert sorted(_within(order, sizes, 0.0)) == []
    assert sorted(_within(order, sizes, 5.0)) == [5]  # nearer above than below
    assert sorted(_within(order, sizes, 3.0)) == []
    whole = [" ".join(texts_of(20, seed)) for seed in (1, 2)]
    for number, text in enumerate(whole):
        (tmp_path / f"{number}.txt").write_text(text)
    sources = [tmp_path / "0.txt", tmp_path / "1.txt"]
    with pytest.raises(DataError, match=r"weights gives 0.2 to (.*)1.txt, (.|\n)*only whole ones are taken"):
        prepare(configure(sources, weights=[0.8, 0.2], validation=0.0))


class _Far(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc]
    """A file system that is elsewhere, and counts what is fetched from it."""

    protocol = "far"
    store: ClassVar[dict[str, object]] = {}
    opened: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("far://").strip("/")

    def _open(self, path: str, *args: object, **more: object) -> object:
        self.opened[path] += 1
        return super()._open(path, *args, **more)


@pytest.fixture
def far() -> _Far:
    fsspec.register_implementation("far", _Far, clobber=True)
    files = _Far()
    _Far.opened.clear()
    return files


def test_what_is_read_from_a_url_is_fetched_once_within_the_bound(far: _Far, tmp_path: Path) -> None:
    for number in range(4):
        far.pipe(f"/{number}.txt", bytes([48 + number]) * 1000)
    far.opened.clear()
    cache = RemoteCache(tmp_path / "remote", 2500)
    for number in (0, 1, 0, 1, 0):
        assert open_binary(f"far://{number}.txt", cache).read() == bytes([48 + number]) * 1000
    assert sum(far.opened.values()) == 2
    assert open_binary("far://2.txt", cache).read()[:1] == b"2"
    kept = [path for path in cache.directory.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in kept) == 2000
    open_binary("far://0.txt", cache).close()  # read last but one, so still there; 1 went
    assert far.opened["/0.txt"] == 1
    open_binary("far://1.txt", cache).close()
    assert far.opened["/1.txt"] == 2
    far.pipe("/big.txt", b"x" * 9000)
    far.opened.clear()
    assert len(open_binary("far://big.txt", cache).read()) == 9000
    assert sum(path.stat().st_size for path in cache.directory.iterdir() if path.is_file()) <= 2500


def test_prepare_reads_a_url_twice_and_fetches_it_once(
    far: _Far, tmp_path: Path, configure: Configure
) -> None:
    write(tmp_path / "a.jsonl", texts_of(40))
    far.pipe("/text/a.jsonl", (tmp_path / "a.jsonl").read_bytes())
    far.opened.clear()
    prepared = prepare(configure("far://text/a.jsonl", split="document"))
    assert sum(far.opened.values()) == 1
    assert prepared.fingerprint == prepare(configure(tmp_path / "a.jsonl", split="document")).fingerprint


def test_what_another_process_is_fetching_stays_and_counts(far: _Far, tmp_path: Path) -> None:
    far.pipe("/a.txt", b"a" * 1000)
    cache = RemoteCache(tmp_path / "remote", 2500)
    cache.directory.mkdir()
    fetched, left = cache.directory / ".abc.999.tmp", cache.directory / ".def.998.tmp"
    fetched.write_bytes(b"x" * 1600)
    assert open_binary("far://a.txt", cache).read() == b"a" * 1000  # where it lies: there is no room
    assert [path for path in cache.directory.iterdir() if path.is_file()] == [fetched]
    fetched.write_bytes(b"x" * 1400)
    left.write_bytes(b"x" * 500)
    os.utime(left, (1, 1))  # whoever fetched it was killed
    far.opened.clear()
    for _ in range(2):
        assert open_binary("far://a.txt", cache).read() == b"a" * 1000
    assert far.opened["/a.txt"] == 1 and fetched.exists() and not left.exists()


def test_a_copy_is_known_by_its_version_and_fetched_again_where_others_removed_it(
    far: _Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.pipe("/a.txt", b"a" * 100)
    info, draw = _Far.info, iter(range(100))
    monkeypatch.setattr(
        _Far, "info", lambda *given, **more: info(*given, **more) | {"url": f"to {next(draw)}"}
    )
    far.opened.clear()
    cache = RemoteCache(tmp_path / "remote", 2500)
    for _ in range(3):  # the server sends us on to another address each time
        assert open_binary("far://a.txt", cache).read() == b"a" * 100
    assert far.opened["/a.txt"] == 1
    touch, gone = os.utime, list[Path]()

    def others_make_room(path: Path, **more: Any) -> None:
        if not gone:
            path.unlink()
            gone.append(path)
        touch(path, **more)

    monkeypatch.setattr("tutti.data.remote.os.utime", others_make_room)
    assert open_binary("far://a.txt", cache).read() == b"a" * 100
    assert gone and far.opened["/a.txt"] == 2


def test_a_tokenizer_that_does_not_know_the_text_is_refused(tmp_path: Path, configure: Configure) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[EOS]": 1, **{f"w{n}": n + 2 for n in range(1500)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]").save_pretrained(
        tmp_path / "t"
    )
    source = write(tmp_path / "a.jsonl", texts_of(40))  # half of its words are above w1500
    known = prepare(configure(source, tokenizer=str(tmp_path / "t"), most_unknown=0.6))
    assert any("are unknown to the tokenizer" in choice for choice in known.choices)
    unknown = sum(shard.unknown for split in known.splits.values() for shard in split.shards)
    expected = sum(int(word[1:]) >= 1500 for text in texts_of(40) for word in text.split())
    assert unknown == expected
    for cache in ("other", "cache"):  # in the second it was prepared when more was allowed
        strict = configure(
            source, tokenizer=str(tmp_path / "t"), most_unknown=0.3, cache=str(tmp_path / cache)
        )
        for _ in range(2):
            with pytest.raises(DataError, match=r"% of the text's tokens are unknown(.|\n)*bpe"):
                prepare(strict)
    assert open_prepared(known.directory).manifest == known.manifest


PARTS = ["word", " ", "\n", "  ", "\t", "1234", "!", "é", "漢", "don't", "\r\n", "\u00a0", "\x1c", "\u0085"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["word", " ", "\n", "  ", "\t", "1234", "!", "é", "漢", "don't", "\r\n", "\u00a0"]),
        max_size=80,
    )
)
def test_short_pieces_have_the_tokens_of_the_whole(short_encoder: TextEncoder, parts: list[str]) -> None:
    text = "".join(parts)
    whole = short_encoder._tokenizer.encode(text, add_special_tokens=False).ids
    assert [ids.tolist() for ids in short_encoder.encode([text, "", text])] == [whole, [], whole]


@pytest.fixture(scope="module")
def short_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEncoder]:
    place = tmp_path_factory.mktemp("bpe")
    text = "word word 1234 don't !! \n\n  word\n word é 漢 \r\n" * 50
    save_tokenizer(train_bpe([text], 300, exactly=False), place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "SHORT_CHARACTERS", 7)
        made = TextEncoder(place)
        assert made._any_cut
        yield made
