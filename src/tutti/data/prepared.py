"""Prepared text, opened: where its files are and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.config.data import DataConfig
from tutti.core.errors import DataError
from tutti.data.manifest import Counts, Manifest, Shard, Split, read_manifest

TOKENIZER = "tokenizer"
#: How every choice begins: `data.KEY = VALUE: why`.
_CHOICE = re.compile(r"data\.(\w+) = (\w+):")


@dataclass(frozen=True)
class Prepared:
    """A complete directory of prepared text. All sizes were checked; hashes are checked on first use."""

    directory: Path
    manifest: Manifest

    @property
    def tokenizer_directory(self) -> Path:
        """A Hugging Face tokenizer directory."""
        return self.directory / TOKENIZER

    @property
    def vocabulary(self) -> int:
        """Number of tokens V; every token number is below it."""
        return self.manifest.vocabulary

    @property
    def end_token(self) -> int:
        """The token behind every document; it stands nowhere else."""
        return self.manifest.end_token

    @property
    def fingerprint(self) -> str:
        """Names the tokens and the tokenizer."""
        return self.manifest.fingerprint

    @property
    def splits(self) -> dict[str, Split]:
        """`train`, `validation` and `test`; a part that was not asked for has no tokens."""
        return self.manifest.splits

    @property
    def choices(self) -> list[str]:
        """Every `auto` that was resolved, with its reason, and what else the user should know."""
        return list(self.manifest.choices)

    def resolved(self, config: DataConfig) -> DataConfig:
        """`config` with the values that were chosen for its `auto`; names the same prepared text."""
        matches = filter(None, map(_CHOICE.match, self.choices))
        chosen: dict[str, str] = {found[1]: found[2] for found in matches}
        updates: dict[str, int | str] = {}
        if config.vocabulary == "auto" and "vocabulary" in chosen:
            updates["vocabulary"] = int(chosen["vocabulary"])
        if config.split == "auto" and "split" in chosen:
            updates["split"] = chosen["split"]
        return config.model_copy(update=updates)

    @property
    def counts(self) -> Counts:
        """What was read and what was left out."""
        return self.manifest.counts

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """[V] bytes of text that each token stands for; 0 for special tokens."""
        self.manifest.token_bytes.verify(self.directory)
        array: NDArray[np.int64] = np.load(self.directory / self.manifest.token_bytes.name)
        return array

    def open_tokens(self, shard: Shard) -> NDArray[Any]:
        """The tokens of a shard, uint16 or uint32, memory-mapped.

        Raises:
            DataError: the file is missing or corrupted; says which.
        """
        shard.tokens_file.verify(self.directory)
        return self._map(shard.tokens_file.name)

    def open_documents(self, shard: Shard) -> NDArray[np.int64]:
        """Token positions in a shard where documents start, memory-mapped; raises as `open_tokens`."""
        shard.documents_file.verify(self.directory)
        return self._map(shard.documents_file.name)

    def _map(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.directory / name, mmap_mode="r")
        return array.view(np.ndarray)  # a plain view of the mapping: slicing it is three times as fast

    def samples(self, part: str, sequence: int) -> int:
        """How many samples of `sequence` tokens `part` has."""
        return max(0, (self.splits[part].tokens - 1) // sequence)

    def require(self, sequence: int) -> None:
        """Raises DataError when a part that is not empty is shorter than one sample."""
        for name, split in self.splits.items():
            if split.tokens <= sequence and (split.tokens or name == "train"):
                raise too_short(name, split, sequence)


def too_short(name: str, split: Split, sequence: int) -> DataError:
    """A part that does not hold one sample."""
    other = "" if name == "train" else f", or change data.{name} or data.split"
    return DataError(
        f"the {name} part has {split.tokens:,} tokens ({split.bytes:,} bytes of text), "
        f"fewer than one sample of data.sequence + 1 = {sequence + 1:,}",
        f"give more text, or lower data.sequence{other}",
    )


def open_prepared(directory: Path) -> Prepared:
    """Open what `prepare` wrote.

    Raises:
        DataError: it is incomplete, its index is damaged, or a file is missing or has another size.
    """
    prepared = Prepared(directory, read_manifest(directory))
    for file in prepared.manifest.tokenizer:
        file.verify(directory)
    return prepared
