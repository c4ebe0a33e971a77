"""Near duplicates against exact similarities, and against datasketch."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tutti.config.data import DataConfig
from tutti.data import prepare, shards, staging
from tutti.data.cleaning.words import sequences, words_of
from tutti.data.near import groups, signatures
from tutti.data.near.groups import SignedUnit, group
from tutti.data.near.signatures import band_keys, shape_of_bands, sign

Configure = Callable[..., DataConfig]
THRESHOLD = 0.8


def exact(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def jaccard(a: str, b: str) -> float:
    one, other = exact(a), exact(b)
    return len(one & other) / len(one | other)


def corpus(families: int = 60, seed: int = 0) -> list[str]:
    """Texts of which some are copies of others with words exchanged: from hardly any to very many."""
    draw = np.random.default_rng(seed)
    texts = []
    for family in range(families):
        words = draw.integers(0, 5000, 200)
        for _ in range(4):
            changed = words.copy()
            places = draw.choice(len(words), int(draw.integers(0, 8)), replace=False)
            changed[places] = draw.integers(5000, 9000, len(places))
            texts.append(" ".join(f"w{word}" for word in changed) + f" end{family}")
    return texts


def test_words_are_those_of_a_regular_expression() -> None:
    texts = [
        "",
        "  \n",
        "One two, THREE four five-six.",
        "naïve Ärger 3x",
        "a" * 700 + " b",
        "漢字 kana かな",
        "x_y",
    ]
    words = words_of(texts)
    expected = [["one", "two", "three", "four", "five", "six"], ["naïve", "ärger", "3x"], ["a" * 700, "b"]]
    assert words.counts.tolist() == [0, 0, 6, 3, 2, 5, 2]
    assert words.lengths.tolist() == [len(word) for some in expected for word in some] + [1, 1, 4, 1, 1, 1, 1]
    # Equal words have equal hashes wherever they stand; different ones differ.
    again = words_of(["three ONE", "two six"]).hashes
    assert again.tolist() == [words.hashes[2], words.hashes[0], words.hashes[1], words.hashes[5]]
    assert len(set(words.hashes[:11].tolist())) == 11


def test_sequences_stay_in_their_text() -> None:
    words = words_of(["a b c d e f", "a b", "", "b c d e f"])
    hashes, bounds = sequences(words, 5, short=True)
    assert np.diff(bounds).tolist() == [2, 1, 0, 1]
    assert hashes[1] == hashes[3] and hashes[0] != hashes[2]
    assert np.diff(sequences(words, 5, short=False)[1]).tolist() == [2, 0, 0, 1]


def test_signatures_estimate_jaccard() -> None:
    texts = corpus(40)
    signed = sign(texts)
    errors = []
    for a, b in combinations(range(len(texts)), 2):
        if a // 4 == b // 4:
            errors.append((signed[a] == signed[b]).mean() - jaccard(texts[a], texts[b]))
    # Of 128 entries the standard deviation is at most sqrt(0.25 / 128) = 0.044.
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.05
    assert (sign(texts[3:4]) == signed[3]).all(), "whatever else is in the batch"


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_find_what_lies_at_the_threshold(threshold: float) -> None:
    bands, rows = shape_of_bands(threshold)
    assert bands * rows <= signatures.ENTRIES
    assert 1 - (1 - threshold**rows) ** bands >= 0.95
    more = signatures.ENTRIES // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** more < 0.95


def write_units(directory: Path, texts: list[str], each: int) -> list[SignedUnit]:
    units = []
    for number in range(0, len(texts), each):
        signed = sign(texts[number : number + each])
        unit = SignedUnit(directory / f"{number}k.npy", directory / f"{number}s.npy", len(signed))
        np.save(unit.keys, band_keys(signed, THRESHOLD))
        np.save(unit.signatures, signed)
        units.append(unit)
    return units


def pairs_of(labels: np.ndarray) -> set[tuple[int, int]]:
    return {(a, b) for a, b in combinations(range(len(labels)), 2) if labels[a] == labels[b]}


def test_groups_are_those_of_datasketch_and_of_exact_similarity(tmp_path: Path) -> None:
    datasketch = pytest.importorskip("datasketch")
    texts = corpus()
    everything = np.ones(len(texts), bool)
    found = pairs_of(group(write_units(tmp_path, texts, 37), everything, THRESHOLD, 10**9))
    same = {
        (a, b): jaccard(texts[a], texts[b]) for a, b in combinations(range(len(texts)), 2) if a // 4 == b // 4
    }
    alike = {pair for pair, value in same.items() if value >= THRESHOLD + 0.08}
    assert len(alike) > 30
    assert len(alike & found) >= 0.97 * len(alike)
    index = datasketch.MinHashLSH(threshold=THRESHOLD, num_perm=128)
    hashed = []
    for number, text in enumerate(texts):
        one = datasketch.MinHash(num_perm=128)
        one.update_batch([" ".join(sequence).encode() for sequence in exact(text)])
        hashed.append(one)
        index.insert(str(number), one)
    theirs = {
        (a, int(b))
        for a, one in enumerate(hashed)
        for b in index.query(one)
        if a < int(b) and one.jaccard(hashed[int(b)]) >= THRESHOLD
    }
    sure = {pair for pair in theirs if pair in alike}
    assert len(sure - found) <= 0.03 * len(sure)
    # Groups are closed, so two that are less alike may be in one by way of a third; not those of other families.
    assert all(a // 4 == b // 4 for a, b in found)
    assert all(max(value for pair, value in same.items() if a in pair) >= THRESHOLD - 0.12 for a, _ in found)


def test_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus(30)
    units = write_units(tmp_path, texts, 50)
    considered = np.ones(len(texts), bool)
    considered[5] = False
    roomy = pairs_of(group(units, considered, THRESHOLD, 10**9))
    monkeypatch.setattr(groups, "_PAIRS_AT_ONCE", 3)
    assert roomy == pairs_of(group(units, considered, THRESHOLD, 2000))
    assert roomy and not any(5 in pair for pair in roomy)


def test_texts_without_words_are_like_no_other(tmp_path: Path) -> None:
    texts = ["!!!", "...", "", "one word", "one word"]
    labels = group(write_units(tmp_path, texts, 9), np.ones(5, bool), THRESHOLD, 10**9)
    assert pairs_of(labels) == {(3, 4)}


def test_prepare_keeps_the_first_of_each_group_whatever_the_number_of_workers(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "UNIT_BYTES", 20_000)
    path = tmp_path / "texts"
    path.mkdir()
    texts = corpus(25)
    for number, text in enumerate(texts):
        (path / f"{number:04d}.txt").write_text(text)
    made = []
    for workers in (1, 2):
        monkeypatch.setattr(staging, "BYTES_WORTH_PROCESSES", 0 if workers > 1 else 10**12)
        monkeypatch.setattr(shards, "BYTES_WORTH_PROCESSES", 0 if workers > 1 else 10**12)
        config = configure(path, clean={"near_duplicates": THRESHOLD}, cache=str(tmp_path / f"c{workers}"))
        made.append(prepare(config, workers=workers))
    assert made[0].fingerprint == made[1].fingerprint
    (report,) = [step for step in made[0].manifest.steps if step.step == "near duplicates"]
    signed = sign(texts)
    expected = sum(
        any((signed[a] == signed[b]).mean() >= THRESHOLD for b in range(a - a % 4, a))
        for a in range(len(texts))
    )
    # A document that is near to one of its family that is not an earlier one is left out as well.
    assert expected <= report.dropped <= expected + 5
    documents = sum(split.documents for split in made[0].splits.values())
    assert documents == len(set(texts)) - report.dropped
    assert len(report.examples) == 3 and "like " in report.examples[0].text
