"""One-letter typos of every key and every word that the schema knows get the right suggestion."""

import itertools
import string
from collections.abc import Iterator

import pytest

from tutti.config import InvalidConfig, parse_config
from tutti.config.describe import all_keys, choices, field_at
from tutti.config.suggest import ELSEWHERE_CALLED, distance, nearest, suggest_key

LETTERS = string.ascii_lowercase + string.digits + "_"


def typos(word: str) -> Iterator[str]:
    """Every text that one insertion, deletion, replacement or swap makes of `word`."""
    made = set()
    for i in range(len(word) + 1):
        made |= {word[:i] + letter + word[i:] for letter in LETTERS}
        made |= {word[:i] + letter + word[i + 1 :] for letter in LETTERS}
        made.add(word[:i] + word[i + 1 :])
        made.add(word[:i] + word[i : i + 2][::-1] + word[i + 2 :])
    yield from sorted(made - {word})


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_typos_of_every_key(every: int) -> None:
    right = wrong = 0
    for path in all_keys():
        section, key = path[:-1], path[-1]
        beside = {other[-1] for other in all_keys() if other[:-1] == section}
        for typo in itertools.islice(typos(key), len(key) % every, None, every):
            if typo in beside or not typo:
                continue
            good = suggest_key(section, typo)[:1] == (key,)
            right, wrong = right + good, wrong + (not good)
    assert right / (right + wrong) >= 0.95, (right, wrong)
    assert right > 4000


def test_typos_of_every_word() -> None:
    right = wrong = 0
    for path in all_keys():
        field = field_at(path)
        assert field is not None
        words = choices(field.annotation)
        for word in words:
            for typo in typos(word):
                if typo in words or not typo:
                    continue
                good = nearest(typo, words)[:1] == [word]
                right, wrong = right + good, wrong + (not good)
    assert right / (right + wrong) >= 0.95, (right, wrong)
    assert right > 3000


def test_typos_through_the_whole_loader() -> None:
    """A sample of the above, as a user meets it."""
    tried = right = 0
    for path in all_keys():
        for typo in itertools.islice(typos(path[-1]), 7, None, 97):
            if typo in {other[-1] for other in all_keys() if other[:-1] == path[:-1]}:
                continue
            text = f"{typo}: 1"
            for key in reversed(path[:-1]):
                text = f"{key}: {{{text}}}"
            with pytest.raises(InvalidConfig) as caught:
                parse_config(text, "c.yaml")
            tried += 1
            right += any(f"did you mean {path[-1]!r}" in str(problem) for problem in caught.value.problems)
    assert tried > 50
    assert right / tried >= 0.95


def test_the_right_key_in_the_wrong_section() -> None:
    assert suggest_key((), "steps") == ("train.steps",)
    assert suggest_key((), "learning_rate") == ("train.learning_rate",)
    assert suggest_key(("train",), "sequence") == ("data.sequence",)
    assert suggest_key((), "every") == (
        *("sync.every", "cooperate.every", "checkpoint.every", "evaluate.every"),
    )
    assert suggest_key((), "stepz") == ("train.steps",)
    assert suggest_key(("train",), "replicas") == ("replicas",)


def test_other_writings_and_other_names() -> None:
    assert suggest_key(("train",), "learningRate") == ("learning_rate",)
    assert suggest_key(("train",), "micro-batch") == ("micro_batch",)
    assert suggest_key(("train",), "lr") == ("learning_rate",)
    assert suggest_key((), "lr") == ("train.learning_rate",)
    for name, path in ELSEWHERE_CALLED.items():
        assert path in all_keys(), name


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert suggest_key((), "xyzzy") == ()
    assert suggest_key((), "") == ()
    assert suggest_key((), "x") == ()
    assert nearest("q" * 100_000, ["train"]) == []


def test_distance() -> None:
    assert [distance("train", other) for other in ("train", "trian", "rain", "trains", "brain", "")] == [
        0,
        1,
        1,
        1,
        1,
        5,
    ]
