"""Data sets in the format of the Hugging Face hub, written by its own library."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from tutti.config.data import DataConfig
from tutti.config.task import TaskConfig
from tutti.core import DataError
from tutti.data.labelled.gather import gather
from tutti.tasks import make_task

MOODS = ["bad", "good"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits as a hub's data set has them: labels are numbers, and those of the test are kept secret."""
    place = tmp_path_factory.mktemp("hub") / "moods"
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=MOODS)})

    def split(count: int, *, secret: bool = False) -> Dataset:
        rows = {
            "sentence": [f"text {count} {n}" for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        return Dataset.from_dict(rows | ({"label": [-1] * count} if secret else {}), features=features)

    DatasetDict({"train": split(20), "validation": split(6), "test": split(4, secret=True)}).save_to_disk(
        place
    )
    return place


def read(source: str, kind: str = "classify", fields: dict[str, str] | None = None, **more: str) -> object:
    task = make_task(TaskConfig(kind=kind, fields=fields or {}))  # type: ignore[arg-type]
    return gather(DataConfig(source=source, validation=0.0, **more), task)  # type: ignore[arg-type]


def test_splits_and_the_names_of_labels(saved: Path) -> None:
    found = read(f"hf:{saved}", fields={"text": "sentence"}, validation_source=f"hf:{saved}?split=validation")
    assert {part: len(some) for part, some in found.parts.items()} == {"train": 20, "validation": 6}
    assert found.labels.names == tuple(MOODS) and found.labels.counts == (10, 10)
    assert [one["labels"] for one in found.parts["validation"]] == [[MOODS[n % 2]] for n in range(6)]


def test_tags_in_lists_and_files_that_the_library_reads(tmp_path: Path) -> None:
    tags = ["O", "B-PER", "I-PER"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=tags))})
    rows = {"tokens": [["anna", "lee", "ran"], ["who", "ran"]], "ner_tags": [[1, 2, 0], [0, 0]]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "names")
    found = read(f"hf:{tmp_path / 'names'}", "tag", {"tags": "ner_tags"})
    assert [one["tags"] for one in found.parts["train"]] == [["B-PER", "I-PER", "O"], ["O", "O"]]
    assert found.parts["train"][0]["text"] == "anna lee ran"
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("text,label\nfine,good\nawful,bad\n")
    found = read(f"hf:{tmp_path / 'files'}")
    assert [one["text"] for one in found.parts["train"]] == ["fine", "awful"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?split=test", r"row 0 has no label in 'label'"),
        ("?split=dev", "cannot be had"),
        ("?part=train", "the keys are name, split, revision"),
        ("?split=", "is no address"),
    ],
)
def test_what_cannot_be_had(saved: Path, query: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(f"hf:{saved}{query}", fields={"text": "sentence"})
