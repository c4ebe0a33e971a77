"""Documents told round their middle: nothing is lost but an end, nothing else changes, whoever computes it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from tutti.config.data import DataConfig
from tutti.config.load import load_config
from tutti.core import ConfigError, DataError
from tutti.core.infilling import Sentinels
from tutti.data import InfillSource, Prepared, TokenSource, prepare
from tutti.data.tokenizer import load_for_encoding

SEQUENCE, SEED = 96, 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    place = tmp_path_factory.mktemp("infill")
    folder = place / "code"
    folder.mkdir()
    for number in range(120):  # documents of 10 to 250 tokens
        lines = [
            f"def f_{number}_{k}(größe, b={k * number}):\n    return größe * b\n" for k in range(number % 9)
        ]
        (folder / f"{number:03}.py").write_text("\n".join([f"# part {number}", *lines]))
    config = DataConfig(
        source=str(folder), cache=str(place / "cache"), tokenizer="bpe", vocabulary=400, sequence=SEQUENCE
    )
    return prepare(config, use="infill")


def pieces(window: NDArray[np.int64], end: int) -> Iterator[NDArray[np.int64]]:
    start = 0
    for stop in [*np.flatnonzero(window == end), len(window)]:
        yield window[start:stop]
        start = stop + 1


def read_back(piece: list[int], marks: Sentinels) -> tuple[list[int], list[int], list[int]]:
    """Prefix, middle and suffix of a PSM text; of an SPM text the first two together as the middle."""
    assert piece[0] == marks.before and piece.count(marks.after) == piece.count(marks.middle) == 1
    at, behind = piece.index(marks.after), piece.index(marks.middle)
    return piece[1:at], piece[behind + 1 :], piece[at + 1 : behind]


def test_what_is_turned_round_is_still_the_text(prepared: Prepared) -> None:
    plain = TokenSource(prepared, "train", SEQUENCE, SEED, shift=True)
    turned = InfillSource(prepared, "train", SEQUENCE, SEED, shift=True, share=0.7)
    tokenizer = load_for_encoding(prepared.tokenizer_directory)
    marks = Sentinels.of(tokenizer.token_to_id)
    assert marks is not None
    numbers = np.arange(plain.samples_in_epoch(1))
    seen = changed = suffix_first = 0
    for before, after in zip(plain.windows(1, numbers), turned.windows(1, numbers), strict=True):
        assert np.array_equal(
            before == plain.end_token, after == plain.end_token
        )  # documents end where they did
        for one, other in zip(pieces(before, plain.end_token), pieces(after, plain.end_token), strict=True):
            seen += len(one) > 10
            if np.array_equal(one, other):
                continue
            changed += 1
            prefix, middle, suffix = read_back(other.tolist(), marks)
            suffix_first += not prefix and other[1] == marks.after
            text = tokenizer.decode(one.tolist())
            again = "".join(tokenizer.decode(part) for part in (prefix, middle))
            assert text.startswith(again)  # then comes the suffix, of which the end may be missing
            rest = text[len(again) :]
            assert rest.encode().startswith(tokenizer.decode(suffix).rstrip("�").encode())
            assert len(rest) - len(tokenizer.decode(suffix)) < 60
    assert 0.45 < changed / seen < 0.7  # some begin within a character, or are cut too near the end
    assert 0.35 < suffix_first / changed < 0.65


def test_what_begins_a_document_stays_before_it(
    prepared: Prepared, configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    core = Tokenizer.from_file(str(prepared.tokenizer_directory / "tokenizer.json"))
    core.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    begin = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|endoftext|>"
    ).save_pretrained(str(tmp_path / "theirs"))
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "def number_{n}(a):\\n    return a * {n}"}}\n' for n in range(200)))
    begun = prepare(configure(text, tokenizer=str(tmp_path / "theirs"), sequence=64), use="infill")
    source = InfillSource(begun, "train", 64, SEED, shift=True, share=1.0)
    marks = Sentinels.of(core.token_to_id)
    assert marks is not None
    turned = 0
    for window in source.windows(0, np.arange(source.samples_in_epoch(0))):
        for piece in list(pieces(window, source.end_token))[1:]:  # the first begins anywhere
            assert len(piece) == 0 or (piece[0] == begin and begin not in piece[1:])
            turned += len(piece) > 1 and piece[1] == marks.before
    assert turned > 100


def test_it_follows_from_seed_epoch_and_number_alone(prepared: Prepared) -> None:
    source = InfillSource(prepared, "train", SEQUENCE, SEED, shift=True, share=0.5)
    together = source.load(2, [0, 1, 2, 3])
    for number in range(4):
        alone = pickle.loads(pickle.dumps(source)).load(2, [number])
        for name, tensor in together.items():
            assert tensor[number].equal(alone[name][0]), name
    other = InfillSource(prepared, "train", SEQUENCE, SEED + 1, shift=True, share=0.5)
    assert other.windows(0, np.arange(4)).tolist() != source.windows(0, np.arange(4)).tolist()
    assert source.fingerprint != other.fingerprint
    assert source.fingerprint != TokenSource(prepared, "train", SEQUENCE, SEED, shift=True).fingerprint


@pytest.mark.parametrize(
    "names",
    [
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ],
)
def test_marks_of_known_models_are_found(names: tuple[str, str, str]) -> None:
    vocabulary = {"a": 0, **{name: number for number, name in enumerate(names, 5)}}
    marks = Sentinels.of(vocabulary.get)
    assert marks == Sentinels(5, 6, 7)
    assert marks.ask([1, 2], [3]) == [5, 1, 2, 6, 3, 7]
    assert marks.tell([1, 2], [4], [3], suffix_first=False) == [5, 1, 2, 6, 3, 7, 4]
    assert marks.tell([1, 2], [4], [3], suffix_first=True) == [5, 6, 3, 7, 1, 2, 4]
    assert Sentinels.of({"a": 0}.get) is None


def test_what_cannot_be_is_refused(configure: Callable[..., DataConfig], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text\n" * 100)
    plain = prepare(configure(tmp_path / "text.txt"))
    with pytest.raises(DataError, match=r"has no marks for task\.infill"):
        InfillSource(plain, "train", 16, 0, shift=True, share=0.5)
    words: list[Any] = ["name=x", "task={kind: masked_language_model, infill: 0.5}"]
    with pytest.raises(ConfigError, match="infill belongs to kind language_model"):
        load_config(None, words)
