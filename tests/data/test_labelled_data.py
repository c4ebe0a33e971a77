"""Labelled examples: formats, splits, duplicates, labels, and everything that is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from encoders import write_encoder, write_intents, write_jsonl, write_names
from tutti.config.data import DataConfig
from tutti.config.task import TaskConfig
from tutti.core import DataError
from tutti.data.labelled import (
    ExampleSource,
    PreparedExamples,
    Reader,
    open_examples,
    prepare_examples,
    read_file,
)
from tutti.tasks import Task, make_task


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("bert")))


def prepared(
    tmp_path: Path,
    tokenizer: str,
    source: Path | list[str],
    kind: str = "classify",
    task: dict[str, object] | None = None,
    **data: object,
) -> PreparedExamples:
    config = DataConfig(
        source=source if isinstance(source, list) else str(source),
        tokenizer=tokenizer,
        cache=str(tmp_path / "cache"),
        **data,
    )
    made: Task = make_task(TaskConfig(kind=kind, **(task or {})))
    return prepare_examples(config, made, Reader(24, types=True), lambda _: None)


def test_a_table_becomes_rows(tmp_path: Path, tokenizer: str) -> None:
    found = prepared(tmp_path, tokenizer, write_intents(tmp_path), validation=0.2)
    train, validation = found.parts["train"], found.parts["validation"]
    assert train.examples + validation.examples == 120
    assert 10 <= validation.examples <= 40
    assert found.labels.names == ("exchange", "late_transfer", "lost_card")
    assert sum(found.labels.counts) == train.examples == len(train.table)
    for number, example in enumerate(train.read()):
        row = train.table[number]
        assert row["labels"] == [found.labels.names.index(example["labels"][0])]
        assert len(row["input_ids"]) <= 24 and row["input_ids"][0] == 2
    again = prepared(tmp_path, tokenizer, write_intents(tmp_path), validation=0.2)
    assert again.directory == found.directory


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "json", "parquet"])
def test_every_format_says_the_same(tmp_path: Path, ending: str) -> None:
    records = [{"text": 'he said: "no"\nand left, late', "label": "a"}, {"text": "\ttab", "label": "b"}]
    path = tmp_path / f"x.{ending}"
    if ending == "jsonl":
        write_jsonl(path, records)
    elif ending == "json":
        path.write_text(json.dumps(records))
    elif ending == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="," if ending == "csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    assert [dict(record.fields) for record in read_file(path, DataConfig())] == records


def test_squads_articles_are_questions(tmp_path: Path) -> None:
    answers = [{"text": "b", "answer_start": 2}]
    paragraph = {"context": "a b c", "qas": [{"id": "q1", "question": "what?", "answers": answers}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    (record,) = read_file(path, DataConfig())
    assert record.fields == {"question": "what?", "context": "a b c", "answers": answers}
    assert record.origin.endswith("x.json, question q1")


def test_conll_is_read_by_sentences(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nU.N. NNP I-NP B-ORG\nofficial NN I-NP O\n\n\n#tag\tO\n", encoding="utf-8"
    )
    records = list(read_file(path, DataConfig()))
    assert [dict(record.fields) for record in records] == [
        {"tokens": ["U.N.", "official"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#tag"], "tags": ["O"]},
    ]
    assert [record.origin.rpartition(":")[2] for record in records] == ["3", "7"]


def test_duplicates_go_and_what_is_judged_by_is_not_trained_on(tmp_path: Path, tokenizer: str) -> None:
    train = write_jsonl(
        tmp_path / "train.jsonl",
        [
            {"text": "my card", "label": "a"},
            {"text": "my  card ", "label": "a"},  # the same but for spaces
            {"text": "the fee", "label": "b"},
            {"text": "the fee", "label": "a"},  # contradicts
            {"text": "kept aside", "label": "b"},
        ],
    )
    validation = write_jsonl(tmp_path / "v.jsonl", [{"text": "kept aside", "label": "b"}])
    found = prepared(tmp_path, tokenizer, train, validation_source=str(validation))
    assert (
        found.counts["duplicates"] == 1
        and found.counts["contradictions"] == 1
        and found.counts["leaked"] == 1
    )
    assert [example["text"] for example in found.parts["train"].read()] == ["my card", "the fee", "the fee"]
    assert any("left out" in choice for choice in found.choices)
    everything = prepared(tmp_path, tokenizer, train, validation_source=str(validation), deduplicate=False)
    assert everything.parts["train"].examples == 5


@pytest.mark.parametrize("parts", [("validation",), ("validation", "test"), ("test",)])
def test_what_is_judged_by_all_of_its_own_examples_is_told_so(
    tmp_path: Path, tokenizer: str, parts: tuple[str, ...]
) -> None:
    rows = [{"text": "my card", "label": "a"}, {"text": "the fee", "label": "b"}]
    train = write_jsonl(tmp_path / "train.jsonl", [*rows, rows[0] | {"text": "my  card"}])
    judged = {f"{part}_source": str(write_jsonl(tmp_path / f"{part}.jsonl", rows)) for part in parts}
    places = " and ".join(rf"data\.{part}_source \(.*{part}\.jsonl\)" for part in parts)
    words = rf"all 3 examples of data\.source \(.*train\.jsonl\) have the text of one in {places} and are"
    with pytest.raises(DataError, match=rf"{words}[^→]*→ [^→]*data\.deduplicate: false"):
        prepared(tmp_path, tokenizer, train, **judged)
    assert prepared(tmp_path, tokenizer, train, deduplicate=False, **judged).parts["train"].examples == 3


def test_an_example_that_contradicts_is_kept_once(tmp_path: Path, tokenizer: str) -> None:
    labels = "abbabc"
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "my card", "label": label} for label in labels])
    found = prepared(tmp_path, tokenizer, path, validation=0.0)
    assert [example["labels"] for example in found.parts["train"].read()] == [["a"], ["b"], ["c"]]
    assert found.counts["duplicates"] == 3 and found.counts["contradictions"] == 2


def test_texts_of_a_pair_are_compared_each_by_itself(tmp_path: Path, tokenizer: str) -> None:
    pairs = [
        ("new york", "city guide"),
        ("new", "york city guide"),
        ("new  york ", "city\nguide"),
        ("a", "b c"),
    ]
    asked = write_jsonl(tmp_path / "e.jsonl", [{"query": one, "text": two} for one, two in pairs])
    judged = write_jsonl(tmp_path / "v.jsonl", [{"query": "a b", "text": "c"}])
    found = prepared(tmp_path, tokenizer, asked, "embed", validation_source=str(judged))
    assert [example["query"] for example in found.parts["train"].read()] == ["new york", "new", "a"]
    assert found.counts["duplicates"] == 1 and "leaked" not in found.counts
    rows = [{"text": one, "pair": two, "label": "ab"[n % 2]} for n, (one, two) in enumerate(pairs)]
    found = prepared(tmp_path, tokenizer, write_jsonl(tmp_path / "c.jsonl", rows), validation=0.0)
    assert [example["text"] for example in found.parts["train"].read()] == ["new york", "new", "a"]


def test_what_was_left_out_is_said_of_the_files_as_they_are(tmp_path: Path, tokenizer: str) -> None:
    """Also where the same examples were prepared from other files before, with what was chosen then."""
    long = {"text": "card " * 40, "label": "a"}
    rows = [long, *({"text": f"card {n}", "label": "ab"[n % 2]} for n in range(9))]
    judged = [{"text": "fee", "label": "a"}]
    validation = str(write_jsonl(tmp_path / "v.jsonl", judged))
    files = {"doubled": [*rows, *rows[:5]], "clean": rows, "leaked": [*rows, *judged]}
    found = {
        name: prepared(
            tmp_path, tokenizer, write_jsonl(tmp_path / "t.jsonl", some), validation_source=validation
        )
        for name, some in files.items()
    }
    assert len({one.directory for one in found.values()}) == 1
    assert [one.counts.get("duplicates", 0) for one in found.values()] == [5, 0, 0]
    assert [one.counts.get("leaked", 0) for one in found.values()] == [0, 0, 1]
    labels, cut, doubled, leaked = (
        "2 labels, of which each has 4 to 6 examples",
        "1 of 10 train examples are longer than 24 tokens: their ends are cut off",
        "5 examples occur more than once and are taken once",
        "1 examples to train on have the text of a validation or test example and are left out",
    )
    expected = [[labels, doubled, cut], [labels, cut], [labels, leaked, cut]]
    assert [one.choices for one in found.values()] == expected


def test_what_a_killed_predecessor_had_begun_is_swept_away(tmp_path: Path, tokenizer: str) -> None:
    """Also one that had the number that this process has."""
    path = write_intents(tmp_path)
    found = prepared(tmp_path, tokenizer, path)
    folder, name = found.directory.parent, found.directory.name
    shutil.rmtree(found.directory)
    for process in (os.getpid(), 1):
        (folder / f".{name}.{process}.tmp" / "train").mkdir(parents=True)
    (folder / f".{name[::-1]}.1.tmp").mkdir()  # of other examples: they have a lock of their own
    again = prepared(tmp_path, tokenizer, path)
    assert again.manifest == found.manifest
    assert sorted(one.name for one in folder.iterdir()) == sorted([f".{name[::-1]}.1.tmp", name])


def test_unbalanced_labels_are_said(tmp_path: Path, tokenizer: str) -> None:
    records = [{"text": f"card {n}", "label": "common" if n else "rare"} for n in range(20)]
    found = prepared(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", records), validation=0.0)
    assert any("'rare' has 1, the commonest 19" in choice for choice in found.choices)


def test_a_labels_only_example_stays_to_train_on(tmp_path: Path, tokenizer: str) -> None:
    records = [{"text": f"card {n}", "label": f"label {n // 2}"} for n in range(60)]
    found = prepared(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", records), validation=0.5)
    assert len(found.labels.names) == 30 and min(found.labels.counts) >= 1


def test_what_is_too_long_is_cut_and_counted(tmp_path: Path, tokenizer: str) -> None:
    records = [{"text": "card " * (40 if n == 3 else 3) + str(n), "label": "ab"[n % 2]} for n in range(8)]
    found = prepared(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", records), validation=0.0)
    assert found.parts["train"].cut == 1
    assert "1 of 8 train examples are longer than 24 tokens: their ends are cut off" in found.choices
    assert len(found.parts["train"].table[3]["input_ids"]) == 24


def test_samples_are_the_rows_whoever_asks(tmp_path: Path, tokenizer: str) -> None:
    found = prepared(tmp_path, tokenizer, write_names(tmp_path), "tag", validation=0.0)
    task = make_task(TaskConfig(kind="tag"))
    source = ExampleSource(found, "train", task)
    batch = source.load(0, np.array([3, 0]))
    for line, number in enumerate((3, 0)):
        row = source.part.table[number]
        assert batch["input_ids"][line, : len(row["input_ids"])].tolist() == row["input_ids"]
        starts = row["starts"]
        assert [int(batch["labels"][line, at]) for at in starts] == row["tags"]
    assert int((source.empty()["labels"] != -100).sum()) == 0


def test_damage_is_noticed(tmp_path: Path, tokenizer: str) -> None:
    found = prepared(tmp_path, tokenizer, write_intents(tmp_path))
    (found.directory / "train" / "labels.npy").write_bytes(b"x")
    with pytest.raises(DataError, match="damaged"):
        open_examples(found.directory)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', "x.jsonl:2 is no JSON"),
        ("x.jsonl", "[1]\n", "x.jsonl:1 is no object"),
        ("x.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}\n", "x.jsonl:1 has too long a number"),
        ("x.jsonl", "[" * 100_000 + "\n", "x.jsonl:1 is nested too deeply"),
        ("x.json", "[" + "1" * 5000 + "]", "x.json has too long a number"),
        ("x.jsonl", '{"text": "", "label": "b"}\n', "x.jsonl:1: 'text' is empty"),
        ("x.jsonl", '{"text": "", "label": "b"}\n', "or leave such out: data.on_empty: skip"),
        ("x.jsonl", '{"text": "a", "label": "b"}\n', "only the label 'b'"),
        ("x.jsonl", "", "data.source holds no examples"),
        ("x.tsv", "text\tlabel\na\tb\na\tb\tc\n", "x.tsv:3 has 3 columns, the first line 2"),
        ("x.tsv", "", "x.tsv is empty"),
        ("x.tsv", 'text\tlabel\n"a\tb\n', "x.tsv:2"),
        ("x.csv", "text,text\na,b\n", "x.csv:1 does not name the columns"),
        ("x.txt", "some text\n", "x.txt holds no labelled examples: its format is text"),
        ("x.json", '{"a": 1}', "neither a list of objects nor SQuAD"),
        ("x.parquet", "PAR1", "x.parquet is a damaged Parquet table"),
    ],
)
def test_bad_files_are_refused_by_their_place(
    tmp_path: Path, tokenizer: str, name: str, content: str, words: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, tokenizer, path)
    assert words in str(caught.value)
    assert not list((tmp_path / "cache").glob("examples/*"))


def test_a_token_without_a_tag_is_refused_by_its_line(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "x.conll"
    path.write_text("a\tO\nb\n")
    with pytest.raises(DataError, match=r"x\.conll:2 has a token without a tag: 'b'"):
        prepared(tmp_path, tokenizer, path, "tag")


def test_a_label_that_training_lacks_is_refused_by_its_line(tmp_path: Path, tokenizer: str) -> None:
    validation = write_jsonl(
        tmp_path / "v.jsonl", [{"text": "late", "label": "exchange"}, {"text": "b", "label": "new"}]
    )
    with pytest.raises(DataError, match=r"v.jsonl:2 \(validation\) has the label 'new'"):
        prepared(tmp_path, tokenizer, write_intents(tmp_path), validation_source=str(validation))


def test_empty_texts_are_left_out_where_that_is_asked_for(tmp_path: Path, tokenizer: str) -> None:
    records = [{"text": "a" * (n % 4), "label": "xy"[n % 2]} for n in range(12)]
    found = prepared(
        tmp_path,
        tokenizer,
        write_jsonl(tmp_path / "x.jsonl", records),
        on_empty="skip",
        validation=0.0,
        deduplicate=False,
    )
    assert found.counts["empty"] == 3 and found.parts["train"].examples == 9


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("fail", None), ("skip", ["fine", "good"]), ("replace", ["b\ufffdd", "fine", "good"])],
)
def test_bytes_that_do_not_decode(
    tmp_path: Path, tokenizer: str, policy: str, kept: list[str] | None
) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"text\tlabel\nb\xffd\ta\nfine\ta\ngood\tb\n")
    if kept is None:
        with pytest.raises(DataError, match=r"x\.tsv:2 does not decode"):
            prepared(tmp_path, tokenizer, path, on_bad_encoding=policy)
        return
    found = prepared(tmp_path, tokenizer, path, on_bad_encoding=policy, validation=0.0)
    assert [example["text"] for example in found.parts["train"].read()] == kept


def test_files_that_a_model_is_asked_about_are_read_as_its_data_was(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"text": "fine"}\n{"text": "café"}\n'.encode("latin-1"))

    def read(**fields: str) -> list[str]:
        return [record.fields["text"] for record in read_file(path, DataConfig(source="", **fields))]

    assert read(encoding="latin-1") == ["fine", "café"]
    assert read(on_bad_encoding="replace") == ["fine", "caf\ufffd"]
    for policy in ("fail", "skip"):  # none is left out: each waits for its answer
        with pytest.raises(DataError, match=r"x\.jsonl:2 does not decode"):
            read(on_bad_encoding=policy)


def test_a_tokenizer_can_be_trained_on_the_examples(tmp_path: Path) -> None:
    found = prepared(tmp_path, "characters", write_intents(tmp_path), validation=0.0)
    row = found.parts["train"].table[0]
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(found.tokenizer_directory)
    text = found.parts["train"].read()[0]["text"]
    assert row["input_ids"] == theirs(text, truncation=True, max_length=24)["input_ids"]
    assert found.pad == theirs.pad_token_id


def test_something_is_left_to_train_on(tmp_path: Path, tokenizer: str) -> None:
    """Of what has no labels nothing else would say so."""
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"query": "lost card", "text": "my card is lost"}])
    with pytest.raises(DataError, match="keeps every one of 1 examples aside"):
        prepared(tmp_path, tokenizer, path, "embed", validation=0.85)
