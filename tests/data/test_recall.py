"""Passages told again: only their ends change, and they are what stood in them; the same for whoever computes it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tutti.config.data import DataConfig
from tutti.config.load import load_config
from tutti.core import ConfigError
from tutti.data import Prepared, RecallSource, TokenSource, prepare
from tutti.data.recall import LEAST, LONGEST, SHORTEST

SEQUENCE, SEED = 192, 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    place = tmp_path_factory.mktemp("recall")
    (place / "texts").mkdir()
    dice = np.random.default_rng(0)
    for number in range(60):  # documents of 5 to 600 characters, each token in them one of 90
        letters = dice.integers(0x4E00, 0x4E00 + 90, int(dice.integers(5, 600)))
        (place / "texts" / f"{number:02}.txt").write_text("".join(map(chr, letters)))
    return prepare(
        DataConfig(
            source=str(place / "texts"),
            cache=str(place / "cache"),
            tokenizer="characters",
            sequence=SEQUENCE,
        )
    )


def both(prepared: Prepared, share: float, epoch: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    plain = TokenSource(prepared, "train", SEQUENCE, SEED, shift=True)
    numbers = np.arange(plain.samples_in_epoch(epoch))
    told = RecallSource(prepared, "train", SEQUENCE, SEED, shift=True, share=share)
    return plain.windows(epoch, numbers), told.windows(epoch, numbers)


def changes(before: NDArray[np.int64], after: NDArray[np.int64]) -> list[tuple[int, int]]:
    """[first, behind the last) of what differs, stretches that are nearer than `LEAST` taken for one."""
    found: list[tuple[int, int]] = []
    for at in np.flatnonzero(before != after).tolist():
        if found and at - found[-1][1] < LEAST:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return found


def test_what_is_told_again_stood_in_the_same_document_just_before(prepared: Prepared) -> None:
    told = 0
    end = TokenSource(prepared, "train", SEQUENCE, SEED, shift=True).end_token
    for before, after in zip(*both(prepared, 0.5), strict=True):
        assert np.array_equal(before == end, after == end)
        for first, last in changes(before, after):
            told += 1
            begun = max(0, last - LONGEST)
            text = after[begun:first].tolist()
            wanted = after[first:last].tolist()
            assert last - first <= LONGEST // 2
            assert end not in wanted
            assert any(text[at : at + len(wanted)] == wanted for at in range(len(text)))
    assert told > 20


def test_share_is_that_of_the_passages(prepared: Prepared) -> None:
    counts = [
        sum(len(changes(one, other)) for one, other in zip(*both(prepared, share), strict=True))
        for share in (0.0, 0.3, 0.9)
    ]
    assert counts[0] == 0
    assert counts[1] / counts[2] == pytest.approx(1 / 3, rel=0.3)


def test_documents_too_short_stay_as_they_are(prepared: Prepared) -> None:
    end = TokenSource(prepared, "train", SEQUENCE, SEED, shift=True).end_token
    short = 0
    for before, after in zip(*both(prepared, 0.99), strict=True):
        start = 0
        for stop in [*np.flatnonzero(before == end).tolist(), len(before)]:
            if stop - start < SHORTEST:
                short += stop > start
                assert np.array_equal(before[start:stop], after[start:stop])
            start = stop + 1
    assert short > 3


def test_the_same_from_anywhere_and_other_in_every_epoch(prepared: Prepared) -> None:
    source = RecallSource(prepared, "train", SEQUENCE, SEED, shift=False, share=0.5)
    elsewhere = pickle.loads(pickle.dumps(source))
    numbers = np.arange(source.samples_in_epoch(0))
    whole = source.windows(0, numbers)
    assert np.array_equal(elsewhere.windows(0, numbers[::-1])[::-1], whole)
    assert not np.array_equal(source.windows(1, numbers), whole)
    plain = TokenSource(prepared, "train", SEQUENCE, SEED, shift=False)
    assert len({source.fingerprint, elsewhere.fingerprint, plain.fingerprint}) == 2


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("{kind: language_model, infill: 0.5, recall: 0.5}", "infill and recall"),
        ("{kind: classify, recall: 0.5}", "recall belongs to kind language_model"),
        ("{kind: language_model, recall: 1}", "recall"),
    ],
)
def test_where_it_cannot_be(tmp_path: Path, task: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(f"name: x\ndata: {{source: texts}}\ntask: {task}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "run.yaml")
