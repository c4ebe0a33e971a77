"""What the user probably meant: the nearest key or word, or the section that a key belongs to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tutti.config.describe import all_keys, section_keys
from tutti.config.fields import Section
from tutti.config.problems import KeyPath, dotted
from tutti.config.schema import Config

#: Names that other tools have for the same thing.
ELSEWHERE_CALLED = {
    "lr": ("train", "learning_rate"),
    "max_steps": ("train", "steps"),
    "num_steps": ("train", "steps"),
    "iterations": ("train", "steps"),
    "max_iters": ("train", "steps"),
    "batch_size": ("train", "batch"),
    "micro_batch_size": ("train", "micro_batch"),
    "warmup_steps": ("train", "warmup"),
    "lr_scheduler": ("train", "schedule"),
    "scheduler": ("train", "schedule"),
    "grad_clip": ("train", "clip"),
    "max_grad_norm": ("train", "clip"),
    "dtype": ("train", "precision"),
    "seq_len": ("data", "sequence"),
    "sequence_length": ("data", "sequence"),
    "block_size": ("data", "sequence"),
    "context_length": ("data", "sequence"),
    "vocab_size": ("data", "vocabulary"),
    "dataset": ("data", "source"),
    "path": ("data", "source"),
    "workers": ("replicas",),
    "num_workers": ("replicas",),
    "nproc": ("replicas",),
    "world_size": ("replicas",),
    "fsdp": ("layout", "shard"),
    "run_name": ("name",),
    "output_dir": ("runs",),
}


def distance(one: str, other: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour to make `other` of `one`.

    (The restricted Damerau-Levenshtein distance: optimal string alignment.)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]


def _plain(word: str) -> str:
    """`Learning-Rate`, `learningRate` and `learning_rate` are the same word."""
    return "".join(letter for letter in word.lower() if letter.isalnum())


def nearest(word: str, options: Iterable[str], most: int | None = None) -> list[str]:
    """The options nearest to `word`: those that are equally near, best look first, three at most.

    `most`: the largest distance to count as a slip; by default a third of the word, at least 1.
    """
    if not 0 < len(word) <= 64:  # whoever writes a novel there meant something else
        return []
    limit = max(1, len(word) // 3) if most is None else most
    plain = _plain(word)
    found = [
        (0 if plain == _plain(option) else distance(word, option), option)
        for option in set(options)
        if abs(len(word) - len(option)) <= limit + 2  # the others are farther away, and cost the most
    ]
    smallest = min((steps for steps, _ in found), default=limit + 1)
    if smallest > limit or smallest >= len(word):
        return []
    ties = [option for steps, option in found if steps == smallest]
    look = {option: difflib.SequenceMatcher(None, word, option).ratio() for option in ties}
    return sorted(ties, key=lambda option: (-look[option], option))[:3]


def suggest_key(section: KeyPath, key: str, root: type[Section] = Config) -> tuple[str, ...]:
    """What an unknown `key` of `section` should have been: a key beside it by its name, another dotted.

    A slip of one letter in the right section goes before everything, then the right name in another
    section, then what is farther away.
    """
    here = section_keys(section, root)
    keys = [path for path in all_keys(root) if path[:-1] != section]
    guesses = nearest(key, here, 1)
    path = ELSEWHERE_CALLED.get(key.lower())
    if not guesses and path is not None and path in all_keys(root):
        guesses = [path[-1] if path[:-1] == section else dotted(path)]
    guesses = guesses or [dotted(path) for path in keys if _plain(key) and _plain(path[-1]) == _plain(key)]
    guesses = guesses or nearest(key, here)
    if not guesses:
        leaves = nearest(key, {path[-1] for path in keys}, 1)
        guesses = [dotted(path) for path in keys if path[-1] in leaves]
    return tuple(guesses[:4])
