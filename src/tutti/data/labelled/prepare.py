"""Labelled examples to rows of tokens in the cache: gathered, labelled, encoded; found again by their content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tutti.config.data import DataConfig
from tutti.config.task import RememberConfig
from tutti.core.errors import DataError
from tutti.core.files import fsync_directory, write_json_atomically
from tutti.core.rundir import unwritable
from tutti.data.labelled.catalogue import vectors_of
from tutti.data.labelled.gather import Gathered, gather
from tutti.data.labelled.prepared import EXAMPLES, MANIFEST, VECTORS, PreparedExamples, digest, open_examples
from tutti.data.labelled.table import write_table
from tutti.data.lock import locked
from tutti.data.prepared import TOKENIZER
from tutti.data.settings import FORMAT
from tutti.data.tokenizer import (
    choose_vocabulary,
    digest_of_directory,
    end_token_of,
    hugging_face_directory,
    import_tokenizer,
    load_for_encoding,
    pad_token_of,
    save_tokenizer,
    train_bpe,
    train_characters,
    vocabulary_of,
    with_end,
    with_separators,
    words_tokenizer,
)
from tutti.tasks.tag import Tag
from tutti.tasks.talk import RefusedTalk, end_of_turn, give_template, render
from tutti.tasks.task import BETWEEN, Ends, Example, Labels, Row, RowEncoder, TextTask
from tutti.tasks.words import cut_at_words, with_space_before
from tutti.tasks.writing import Writing

Say = Callable[[str], None]
_BATCH = 1024


@dataclass(frozen=True)
class Reader:
    """The model that is to read the rows: tokens that it sees at once, and whether it tells texts of a pair apart.

    `decodes`: it is an encoder-decoder, which reads one text and writes another.
    """

    length: int
    types: bool
    decodes: bool = False


def prepare_examples(
    config: DataConfig, task: TextTask, reader: Reader, say: Say, remember: RememberConfig | None = None
) -> PreparedExamples:
    """Prepare the examples that `config` and `remember` name for `task`, or find them prepared already.

    Raises:
        DataError: files, examples, labels or tokenizer that cannot work; says which file and line.
        RunError: the cache cannot be written.
    """
    say("reading labelled examples")
    gathered = gather(config, task, remember)
    own = config.tokenizer in ("bpe", "characters") or task.words == "labels"
    given = None if own else hugging_face_directory(config.tokenizer)
    name = digest(
        [
            [FORMAT, task.layout] if task.layout else FORMAT,
            # What concerns running text alone says nothing of examples, and runs are older than some of its keys.
            task.config.model_dump(mode="json", exclude={"recall"}),
            [reader.length, reader.types, *([True] if reader.decodes else ())],
            gathered.parts,
            *([sorted(gathered.described.items())] if gathered.described else ()),
            [config.tokenizer, config.vocabulary] if given is None else digest_of_directory(given),
        ]
    )
    cache = Path(config.cache).expanduser()
    final = cache / "examples" / name
    try:
        with locked(cache / "locks" / f"{name}.lock", say):
            if not (final / MANIFEST).is_file():
                for left in final.parent.glob(f".{name}.*.tmp"):  # what a killed predecessor had begun
                    shutil.rmtree(left)
                beside = cache / "examples" / f".{name}.{os.getpid()}.tmp"
                try:
                    _write(config, gathered, task, reader, beside, name)
                    shutil.rmtree(final, ignore_errors=True)
                    beside.rename(final)
                    fsync_directory(final.parent)
                finally:
                    shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise unwritable(cache, error) from error
    return replace(open_examples(final), counts=gathered.counts, remarks=gathered.choices)


def _write(
    config: DataConfig, gathered: Gathered, task: TextTask, reader: Reader, directory: Path, name: str
) -> None:
    directory.mkdir(parents=True)
    frame = with_end if reader.decodes else with_separators
    chosen = _make_tokenizer(config, gathered, task, directory / TOKENIZER, frame)
    if isinstance(task, Tag):
        _cut_at_words(directory / TOKENIZER / "tokenizer.json")
    if isinstance(task, Writing) and not reader.decodes:
        give_template(directory / TOKENIZER, task.template)
    encoder = encoder_in(directory / TOKENIZER, task, reader)
    if gathered.described:
        np.save(directory / VECTORS, vectors_of(gathered.labels.names, gathered.described))
    parts = {}
    for part, examples in gathered.parts.items():
        parts[part] = _write_part(task, part, gathered, encoder, directory / part)
        if cut := parts[part]["cut"]:
            chosen.append(
                f"{cut:,} of {len(examples):,} {part} examples are longer than {reader.length} tokens: {task.long}"
            )
    files = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "fingerprint": name,
        "labels": gathered.labels.names,
        "label_counts": gathered.labels.counts,
        "pad": encoder.pad,
        "end": end_token_of(directory / TOKENIZER, encoder.tokenizer),
        "stop": end_of_turn(encoder) if encoder.render is not None else None,
        "vocabulary": vocabulary_of(encoder.tokenizer),
        "parts": parts,
        "chosen": chosen,
        "files": files,
    }
    manifest = json.loads(json.dumps(manifest))
    write_json_atomically(directory / MANIFEST, {"digest": digest(manifest), "manifest": manifest})


def _write_part(
    task: TextTask, part: str, gathered: Gathered, encoder: RowEncoder, directory: Path
) -> dict[str, Any]:
    examples, origins = gathered.parts[part], gathered.origins[part]
    directory.mkdir()
    rows = tokens = cut = 0

    def of_examples() -> Iterator[list[Row]]:
        for first in range(0, len(examples), _BATCH):
            some = slice(first, first + _BATCH)
            yield from _rows(task, examples[some], origins[some], gathered.labels, encoder)

    def counted() -> Iterator[list[Row]]:
        nonlocal rows, tokens, cut
        for stored in task.together(of_examples(), encoder):
            rows += len(stored)
            tokens += sum(len(row["input_ids"]) for row in stored)
            cut += any(row["cut"][0] for row in stored)
            yield stored

    columns = write_table(directory, counted())
    with (directory / EXAMPLES).open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(example, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return {"examples": len(examples), "rows": rows, "tokens": tokens, "cut": cut, "columns": columns}


def _rows(
    task: TextTask, examples: Sequence[Example], origins: Sequence[str], labels: Labels, encoder: RowEncoder
) -> list[list[Row]]:
    """The rows of each of `examples`; of a talk that cannot be read it is said where it stands."""
    try:
        return task.rows(examples, labels, encoder)
    except RefusedTalk as error:
        if len(examples) == 1:
            raise DataError(f"{origins[0]}: {error.problem}", error.hint) from error
    return [
        _rows(task, [example], [origin], labels, encoder)[0]
        for example, origin in zip(examples, origins, strict=True)
    ]


def _make_tokenizer(
    config: DataConfig,
    gathered: Gathered,
    task: TextTask,
    directory: Path,
    frame: Callable[[Tokenizer], Tokenizer],
) -> list[str]:
    """Put the tokenizer into `directory`; one that is trained gets its special tokens by `frame`. What was chosen."""
    if config.tokenizer not in ("bpe", "characters") and task.words == "text":
        directory.mkdir()
        import_tokenizer(config.tokenizer, directory)
        return []
    if task.words == "labels":
        save_tokenizer(words_tokenizer(gathered.labels.names, BETWEEN), directory)
        return []
    texts = ["\n".join(task.texts(example)) for example in gathered.parts["train"]]
    if isinstance(task, Tag):
        texts = [piece for text in texts for piece in with_space_before(text)]
    if config.tokenizer == "characters":
        save_tokenizer(frame(train_characters(texts)), directory)
        return []
    size, choices = config.vocabulary, []
    if size == "auto":
        size, reason = choose_vocabulary(sum(len(text.encode()) for text in texts))
        choices = [f"data.vocabulary = {size}: {reason}"]
    save_tokenizer(frame(train_bpe(texts, size, exactly=config.vocabulary != "auto")), directory)
    return choices


def _cut_at_words(path: Path) -> None:
    """Let the tokenizer in the file `path` cut between words, wherever it is taken from there."""
    tokenizer = Tokenizer.from_file(str(path))
    cut_at_words(tokenizer)
    tokenizer.save(str(path))


def encoder_of(prepared: PreparedExamples, task: TextTask, reader: Reader) -> RowEncoder:
    """What turns other texts into rows of `task` as the prepared ones were.

    Raises:
        DataError: the tokenizer has been damaged.
    """
    try:
        return encoder_in(prepared.tokenizer_directory, task, reader)
    except Exception as error:  # tokenizers raises its own kind
        raise DataError(
            f"the tokenizer in {prepared.directory} is damaged: {error}", "delete that directory"
        ) from error


def encoder_in(directory: Path, task: TextTask, reader: Reader) -> RowEncoder:
    """The same, with the tokenizer in `directory`."""
    tokenizer = load_for_encoding(directory)
    writes = isinstance(task, Writing)
    fill = render(directory) if writes and not reader.decodes else None
    ends = _ends(directory, tokenizer) if writes and reader.decodes else None
    return RowEncoder(tokenizer, reader.length, pad_token_of(directory, tokenizer), reader.types, fill, ends)


def _ends(directory: Path, tokenizer: Tokenizer) -> Ends:
    """How the texts of an encoder-decoder end."""
    end = end_token_of(directory, tokenizer)
    return Ends(end, tokenizer.encode("a").ids[-1:] == [end])
