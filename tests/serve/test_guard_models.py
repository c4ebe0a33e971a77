"""Models that several threads ask at once: each gets what the model says to its own text alone."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from served_tasks import open_task, write_task
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from tutti.config.task import TaskConfig
from tutti.models.quantized import save_quantized
from tutti.package import Package, open_package, write_package
from tutti.redact import mask
from tutti.serve.asking import Asking
from tutti.serve.guard.harm import Classifier
from tutti.serve.guard.redact import Tagger

TEXTS = [
    "My card is lost.",
    "Anna Smith visits New York today.",
    "Where is my money now?",
    "the exchange was late, said Bob Jones of Paris, again and again",
]


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def packed(place: Path, kind: str) -> Path:
    """A model of `kind` as a package."""
    plain = write_task(place / "plain", kind)
    factory = AutoModelForTokenClassification if kind == "tag" else AutoModelForSequenceClassification
    model, tokenizer = factory.from_pretrained(plain), place / "tokenizer"
    AutoTokenizer.from_pretrained(plain).save_pretrained(tokenizer)
    labels = tuple(model.config.id2label.values())
    task = TaskConfig.model_validate({"kind": kind})
    package = Package("torch", task, labels, (1,) * len(labels), 64, True, recipe="plain", made_from={})
    return write_package(
        place / "packed", package, model.config, tokenizer, lambda path: save_quantized(model, path)
    )


def test_a_tagger_hides_the_same_whoever_asks_meanwhile(tmp_path: Path) -> None:
    place = packed(tmp_path, "tag")
    tagger, asker = Tagger(place, None), open_package(place)
    expected = []
    for text in TEXTS:
        letters = list(text)
        for one in reversed(asker.predict([text])[0]["entities"]):
            letters[one["start"] : one["end"]] = f"[{one['label']}]"
        expected.append("".join(letters))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: mask(text, tagger, Counter()), TEXTS * 20))
    assert found == expected * 20


def test_a_judge_judges_the_same_whoever_asks_meanwhile(tmp_path: Path) -> None:
    place = packed(tmp_path, "classify")
    chances = [one["scores"]["late"] for one in open_package(place).predict(TEXTS)]
    middle = float(np.mean(chances))
    expected = ["late" if chance >= middle else None for chance in chances]
    judge = Classifier(place, ["late"], middle)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(judge.harm, TEXTS * 20)) == expected * 20


def test_engines_beside_each_other_answer_as_alone(tmp_path: Path) -> None:
    """As with documents, whose searcher has an engine of its own."""

    async def vectors(service: Asking, times: int) -> list[np.ndarray]:
        return [np.stack((await service.ask(service.examples(TEXTS))).answers) for _ in range(times)]

    async def chances(service: Asking, times: int) -> list[np.ndarray]:
        asked = service.examples([TEXTS[3], TEXTS[0]])
        return [np.stack((await service.ask(asked)).answers) for _ in range(times)]

    async def together() -> None:
        (one,), (other,) = await vectors(searcher, 1), await chances(judge, 1)
        found = await asyncio.gather(vectors(searcher, 60), chances(judge, 60))
        assert max(np.abs(answer - one).max() for answer in found[0]) < 1e-3
        assert max(np.abs(answer - other).max() for answer in found[1]) < 1e-3

    searcher = open_task(write_task(tmp_path / "embed", "embed"))
    judge = open_task(write_task(tmp_path / "classify", "classify"))
    try:
        asyncio.run(together())
    finally:
        searcher.close()
        judge.close()
