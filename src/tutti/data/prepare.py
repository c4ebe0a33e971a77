"""Raw text to prepared text: the one function of this room that does the whole way.

    sources → scan (hash, duplicates) → split → tokenizer → shards → manifest

The result is found again in two steps. What files there are, with sizes and times, names a listing; if it is
known, nothing is read. Otherwise the text is read once, and its content names the directory: text that was
moved, copied or touched is not encoded again. A preparation that was killed goes on where it was, for the
tokenizer and each shard are whole or not there, and the manifest comes last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutti.config.data import DataConfig
from tutti.config.task import RememberConfig
from tutti.core.errors import DataError
from tutti.core.files import write_json_atomically
from tutti.core.rundir import unwritable
from tutti.data.corpus import Corpus, Sources, digest, read_corpus
from tutti.data.encode import Job
from tutti.data.lock import locked
from tutti.data.manifest import File, Manifest, Shard, Split, write_manifest
from tutti.data.npy import write_npy
from tutti.data.prepared import TOKENIZER, Prepared, open_prepared
from tutti.data.reading import TextSettings, check_encoding
from tutti.data.settings import FORMAT
from tutti.data.shards import write_shards
from tutti.data.texts import changed
from tutti.data.token_bytes import bytes_of_tokens
from tutti.data.tokenizer import begin_token_of, end_token_of, load_for_encoding, vocabulary_of
from tutti.data.tokenizing import Use, make_tokenizer, name_tokenizer

Say = Callable[[str], None]
#: How long text that was made ready waits for its preparation to go on.
_READY_SECONDS = 14 * 86400


def _silent(message: str) -> None:
    """Say nothing."""


def prepare(
    config: DataConfig,
    *,
    workers: int = 1,
    say: Say = _silent,
    use: Use = "text",
    remember: RememberConfig | None = None,
) -> Prepared:
    """Prepare the text that `config` names, or find it prepared already.

    `use`: what for, so that a tokenizer that is trained here has the marks that this takes. `workers`: processes that
    encode at the same time (few for little text); the result does not depend on it. `say` is told what goes on, one
    line at a time. `remember`: text of what a model knew, to be replayed.

    Raises:
        DataError: text, tokenizer or settings that cannot work; says which file and where in it.
        RunError: the cache cannot be written.
    """
    check_encoding(config.encoding)
    if config.tokenizer == "auto":
        config = config.model_copy(update={"tokenizer": "bpe"})
    tokenizer = name_tokenizer(config, use)
    sources = Sources.of(config, remember)
    cache = Path(config.cache).expanduser()
    key = sources.key(config, tokenizer)
    prepared = _known(cache, key)
    if prepared is None:
        try:
            with locked(cache / "locks" / f"{key or 'unlisted'}.lock", say):
                prepared = _known(cache, key) or _prepare(
                    config, sources, remember, use, key, cache, workers, say
                )
        except OSError as error:  # reading reports its own errors: what is left is the cache
            raise unwritable(cache, error) from error
    prepared.require(config.sequence)
    return prepared


def _pointer(cache: Path, key: str) -> Path:
    return cache / "listings" / f"{key}.json"


def _known(cache: Path, key: str | None) -> Prepared | None:
    """What was prepared from the same listing, if it is whole."""
    if key is None:
        return None
    try:
        name = json.loads(_pointer(cache, key).read_text(encoding="utf-8"))["prepared"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: then the text is read again
        return None
    return _complete(cache / "prepared" / name)


def _complete(directory: Path) -> Prepared | None:
    """What is in `directory`, unless something is missing or damaged: that is then written again."""
    try:
        return open_prepared(directory)
    except DataError:
        return None


def _prepare(
    config: DataConfig,
    sources: Sources,
    remember: RememberConfig | None,
    use: Use,
    key: str | None,
    cache: Path,
    workers: int,
    say: Say,
) -> Prepared:
    tokenizer = name_tokenizer(config, use)
    settings = TextSettings.of(config)
    staging = cache / "ready" / (key or digest([file.name for file in [*sources.main, *sources.validation]]))
    _sweep_ready(cache)
    corpus = read_corpus(config, sources, settings, staging, workers=workers, say=say)
    name = digest([corpus.key, tokenizer])
    directory = cache / "prepared" / name
    with locked(cache / "locks" / f"{name}.lock", say):
        prepared = _complete(directory)
        if prepared is not None:
            say("this text was prepared before")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            _sweep(directory)
            prepared = _write(config, corpus, settings, use, directory, workers, say)
        if key != Sources.of(config, remember).key(config, tokenizer):  # what this listing names was not read
            shutil.rmtree(staging, ignore_errors=True)
            raise changed("data.source")
        _require_known(prepared.splits, config)
        # A run keeps the configuration with what was chosen for `auto`; that names the same text.
        resolved = prepared.resolved(config)
        for known in {key, sources.key(resolved, name_tokenizer(resolved, use))} - {None}:
            pointer = _pointer(cache, str(known))
            pointer.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(pointer, {"prepared": name})
    shutil.rmtree(staging, ignore_errors=True)
    return prepared


def _sweep_ready(cache: Path) -> None:
    """Remove text that was made ready for a preparation that nobody went on with."""
    for path in (cache / "ready").glob("*"):
        if time.time() - path.stat().st_mtime > _READY_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what a killed predecessor had begun."""
    for path in directory.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write(
    config: DataConfig,
    corpus: Corpus,
    settings: TextSettings,
    use: Use,
    directory: Path,
    workers: int,
    say: Say,
) -> Prepared:
    choices = list(corpus.choices)
    tokenizer_digest, chosen = make_tokenizer(config, corpus, settings, use, directory, say)
    choices += chosen
    tokenizer = load_for_encoding(directory / TOKENIZER)
    vocabulary = vocabulary_of(tokenizer)
    token_bytes = bytes_of_tokens(tokenizer, vocabulary)
    job = Job(
        directory,
        directory / TOKENIZER,
        tokenizer_digest,
        None if use == "masks" else begin_token_of(directory / TOKENIZER, tokenizer),
        end_token_of(directory / TOKENIZER, tokenizer),
        token_bytes,
        settings,
    )
    shards = write_shards(job, corpus.plan, corpus.files, workers=workers, say=say)
    splits = {name: _split(part) for name, part in shards.items()}
    choices += _unknown(splits) + _inexact(splits, config.tokenizer)
    tokenizer_files = sorted(path for path in (directory / TOKENIZER).iterdir() if path.is_file())
    write_manifest(
        directory,
        Manifest(
            format=FORMAT,
            fingerprint=_fingerprint(tokenizer_digest, shards),
            vocabulary=vocabulary,
            end_token=job.end_token,
            tokenizer=tuple(File.of(path, f"{TOKENIZER}/{path.name}") for path in tokenizer_files),
            token_bytes=_save_token_bytes(directory, token_bytes),
            splits=splits,
            choices=tuple(choices),
            counts=corpus.counts,
            steps=tuple(corpus.steps),
        ),
    )
    return open_prepared(directory)


def _split(shards: list[Shard]) -> Split:
    tokens, documents, size = (
        sum(getattr(shard, name) for shard in shards) for name in ("tokens", "documents", "bytes")
    )
    return Split(tokens=tokens, documents=documents, bytes=size, shards=tuple(shards))


def _inexact(splits: dict[str, Split], tokenizer: str) -> list[str]:
    """Words for the user where the bytes of the tokens are not the bytes of the text."""
    said = []
    for name, split in splits.items():
        counted = sum(shard.counted_bytes for shard in split.shards)
        if counted != split.bytes:
            why = (
                "characters that the training text lacks"
                if tokenizer == "characters"
                else "the tokenizer changes the text"
            )
            said.append(
                f"bits per byte on {name} are not exact: "
                f"its tokens stand for {counted:,} bytes of {split.bytes:,} ({why})"
            )
    return said


def _unknown(splits: dict[str, Split]) -> list[str]:
    """Words for the user where the tokenizer does not know some of the text."""
    unknown, share = _count_unknown(splits)
    return [f"{unknown:,} tokens ({100 * share:.2g} %) are unknown to the tokenizer"] if unknown else []


def _count_unknown(splits: dict[str, Split]) -> tuple[int, float]:
    """Tokens that stand for what the tokenizer does not know, and their share."""
    unknown = sum(shard.unknown for split in splits.values() for shard in split.shards)
    return unknown, unknown / max(1, sum(split.tokens for split in splits.values()))


def _require_known(splits: dict[str, Split], config: DataConfig) -> None:
    """Raises DataError when the tokenizer does not know more of the text than `most_unknown`."""
    _, share = _count_unknown(splits)
    if share > config.most_unknown:
        raise DataError(
            f"{100 * share:.1f} % of the text's tokens are unknown to the tokenizer {config.tokenizer}",
            "choose one that knows its writing (`bpe` is trained on the text), or raise data.most_unknown",
        )


def _save_token_bytes(directory: Path, token_bytes: NDArray[np.int64]) -> File:
    path = directory / "token_bytes.npy"
    write_npy(path, token_bytes, np.int64)
    return File.of(path)


def _fingerprint(tokenizer_digest: str, shards: dict[str, list[Shard]]) -> str:
    named = {part: [shard.tokens_file.sha256 for shard in of_part] for part, of_part in shards.items()}
    return hashlib.sha256(json.dumps([tokenizer_digest, named], sort_keys=True).encode()).hexdigest()
