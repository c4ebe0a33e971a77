"""What words are worth, compared with the same worked out by hand on plain transformers models."""

from __future__ import annotations

from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from encoders import write_encoder
from tutti.config.task import TaskConfig
from tutti.core import DataError, ModelError, RunError
from tutti.data.tokenizer import train_bpe, train_characters, with_separators
from tutti.explain import Explanation, explain, readings_of, write_explanations
from tutti.explain.words import _of_texts
from tutti.package import Asker
from tutti.serve.hugging_face import open_hugging_face
from tutti.serve.load import set_weights
from tutti.tasks.classify import Classify
from tutti.tasks.task import Labels, Record, RowEncoder

LABELS = ["exchange", "late", "lost"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXT = "why is my   card lost? unbelievable"


def written(place: Path, factory: Any, names: list[str]) -> Path:
    write_encoder(place)
    torch.manual_seed(1)
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    model = factory.from_pretrained(place, **labels)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("explain") / "c", AutoModelForSequenceClassification, LABELS)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("explain") / "t", AutoModelForTokenClassification, TAGS)


def asker_of(place: Path, kind: str, **task: Any) -> Asker:
    return open_hugging_face(place, TaskConfig(kind=kind, **task))  # type: ignore[arg-type]


def explained(asker: Asker, fields: Any, **how: Any) -> list[Explanation]:
    (example,) = asker.task.asked_about([fields])
    return explain(asker, example, readings_of(asker, example), **how)


def log_odds(logits: torch.Tensor, label: int) -> float:
    chance = float(logits.double().softmax(-1)[label])
    return float(np.log(chance / (1 - chance)))


def test_ablation_is_how_much_less_sure_the_model_is_without_each_word(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    words = tokenizer(TEXT).word_ids()

    def sure(hidden: set[int | None], label: int) -> float:
        changed = ids.clone()
        for place, word in enumerate(words):
            if word is not None and word in hidden:
                changed[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            return log_odds(model(changed).logits[0], label)

    with torch.no_grad():
        best = int(model(ids).logits.argmax())
    (ours,) = explained(asker_of(classifier, "classify"), TEXT, method="ablation")
    count = max(word for word in words if word is not None) + 1
    assert ours.label == LABELS[best] and ours.method == "ablation" and len(ours.weights) == count
    whole = sure(set(), best)
    assert ours.log_odds == pytest.approx(whole, abs=1e-3)
    assert ours.without == pytest.approx(sure(set(range(count)), best), abs=1e-3)
    expected = [whole - sure({word}, best) for word in range(count)]
    assert ours.weights == pytest.approx(expected, abs=1e-3)
    assert max(map(abs, expected)) > 0.05
    other = (best + 1) % len(LABELS)
    (asked,) = explained(asker_of(classifier, "classify"), TEXT, method="ablation", label=LABELS[other])
    assert asked.label == LABELS[other] and asked.log_odds == pytest.approx(sure(set(), other), abs=1e-3)


def way_of(embeddings: torch.nn.Embedding, ids: torch.Tensor, nothing: torch.Tensor, sure: Any) -> np.ndarray:
    """Integrated gradients by the midpoint rule, as the paper's equation (3) has them, a value for each token."""
    start, end = embeddings(nothing).detach(), embeddings(ids).detach()
    total, steps = torch.zeros_like(start), 600
    for step in range(steps):
        at = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        (slope,) = torch.autograd.grad(sure(at), at)
        total += slope / steps
    return ((end - start) * total).sum(-1)[0].numpy()  # type: ignore[no-any-return]


def test_gradients_are_those_of_the_paper_and_add_up(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    encoded = tokenizer(TEXT, return_tensors="pt")
    ids, words = encoded["input_ids"], tokenizer(TEXT).word_ids()
    special = torch.tensor([word is None for word in words])
    nothing = torch.where(special, ids, tokenizer.mask_token_id)
    (ours,) = explained(asker_of(classifier, "classify"), TEXT)
    label = LABELS.index(ours.label)

    def sure(at: torch.Tensor) -> torch.Tensor:
        chances = model(inputs_embeds=at, attention_mask=encoded["attention_mask"]).logits[0].softmax(-1)
        return (chances[label] / (1 - chances[label])).log()

    tokens = way_of(model.get_input_embeddings(), ids, nothing, sure)
    expected = [
        sum(value for value, other in zip(tokens, words, strict=True) if other == word)
        for word in range(len(ours.weights))
    ]
    assert ours.method == "gradients"
    assert ours.weights == pytest.approx(expected, abs=0.02)
    assert max(map(abs, expected)) > 0.1
    assert ours.gap is not None and abs(ours.gap) < 0.02
    assert sum(ours.weights) == pytest.approx(ours.log_odds - ours.without + ours.gap, abs=1e-3)


def test_words_stand_where_they_stand_in_the_text(classifier: Path) -> None:
    (ours,) = explained(asker_of(classifier, "classify"), {"text": TEXT, "pair": "the fee"})
    told = ours.told()
    assert (told["text"], told["pair"]) == (TEXT, "the fee")
    assert [word["text"] for word in told["words"]] == [
        *("why", "is", "my", "card", "lost", "?", "unbelievable"),
        *("the", "fee"),
    ]
    for word in told["words"]:
        assert told[word["part"]][word["start"] : word["end"]] == word["text"]
    assert [word["part"] for word in told["words"]] == ["text"] * 7 + ["pair"] * 2


SONG = "春眠不覺曉，it's  café 3"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (train_characters, ["春", "眠", "不", "覺", "曉", "，", "it", "'", "s", "café", "3"]),
        # Tokens of several signs: words that share one are one.
        (
            partial(train_bpe, vocabulary=340, exactly=False),
            ["春眠不覺", "曉", "，", "it", "'", "s", "café", "3"],
        ),
    ],
)
def test_words_are_no_matter_of_the_tokenizer(make: Any, words: list[str]) -> None:
    tokenizer = with_separators(make([SONG, *["春眠不覺"] * 60]))
    encoder = RowEncoder(tokenizer, 64, pad=0, types=False)
    task = Classify(TaskConfig(kind="classify"))
    (example,) = task.asked_about([f" {SONG}"])
    ((row,),) = task.rows([example], Labels((), ()), encoder)
    reading = _of_texts(task, encoder, example, row)
    assert [word.text for word in reading.words] == words
    ids = row["input_ids"]
    assert [place for word in reading.words for place in word.tokens] == list(range(1, len(ids) - 1))
    for word in reading.words:
        told = tokenizer.decode([ids[place] for place in word.tokens]).strip()
        assert told == word.text == reading.parts["text"][word.start : word.end]


def test_what_a_relation_goes_by_are_words_with_signs(tmp_path: Path) -> None:
    place = written(tmp_path / "r", AutoModelForSequenceClassification, ["Cause(e1,e2)", "Other"])
    asker = asker_of(place, "relate")
    (ours,) = explained(asker, "the <e1>card</e1> was lost in <e2>paris</e2>")
    assert ours.reading.parts["text"] == "the $ card $ was lost in # paris #"
    assert "paris" in [word.text for word in ours.reading.words]


def test_several_labels_are_explained_one_by_one(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
    ours = explained(asker_of(classifier, "classify", multiple=True), TEXT)
    said = [name for name, logit in zip(LABELS, logits, strict=True) if logit > 0]
    said = said or [LABELS[int(logits.argmax())]]
    assert [one.label for one in ours] == said
    for one in ours:
        assert one.log_odds == pytest.approx(float(logits[LABELS.index(one.label)]), abs=1e-3)


def test_each_entity_has_its_own_reasons(tagger: Path) -> None:
    text = "anna visits new york and bob works in paris for acme"
    model = AutoModelForTokenClassification.from_pretrained(tagger).eval()
    tokenizer = AutoTokenizer.from_pretrained(tagger)
    asker = asker_of(tagger, "tag")
    (predicted,) = asker.predict([text])
    assert predicted["entities"]
    ours, plain = explained(asker, text), explained(asker, text, method="ablation")
    found = [(one["start"], one["end"], one["label"]) for one in predicted["entities"]]
    for some in (ours, plain):
        assert [(one.entity["start"], one.entity["end"], one.label) for one in some if one.entity] == found
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"][0].tolist()
    words = encoded.word_ids()
    special = torch.tensor([word is None for word in words])
    nothing = torch.where(special, ids, tokenizer.mask_token_id)
    with torch.no_grad():
        tags = model(ids).logits[0].argmax(-1)
    (start, end, _), first = found[0], ours[0]
    own = [
        place
        for place, (a, b) in enumerate(offsets)
        if a >= start and b <= end and words[place] is not None and words[place] != words[place - 1]
    ]

    def sure(at: torch.Tensor) -> torch.Tensor:
        chances = model(inputs_embeds=at, attention_mask=encoded["attention_mask"]).logits[0].softmax(-1)
        each = torch.stack([chances[place, tags[place]] for place in own])
        return (each / (1 - each)).log().mean()

    tokens = way_of(model.get_input_embeddings(), ids, nothing, sure)
    expected = [
        sum(value for value, other in zip(tokens, words, strict=True) if other == word)
        for word in range(len(first.weights))
    ]
    assert first.weights == pytest.approx(expected, abs=0.03)
    kind = found[0][2]
    assert {one.label for one in explained(asker, text, label=kind)} == {kind}


def test_a_long_text_is_explained_where_the_entity_stands(tagger: Path) -> None:
    asker = asker_of(tagger, "tag")
    text = " ".join(["the card was late"] * 40 + ["anna"])
    readings = readings_of(asker, asker.task.asked_about([text])[0])
    assert len(readings) > 1
    for one in explained(asker, text, method="ablation"):
        assert one.entity is not None
        inside = [word for word in one.reading.words if word.start <= one.entity["start"] < word.end]
        assert [word.text for word in inside] == [text[inside[0].start : inside[0].end]]


def test_whole_numbers_have_no_gradients_but_can_be_asked(classifier: Path) -> None:
    asker = asker_of(classifier, "classify")
    set_weights(asker.objective.model, "int8")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no gradients"):
        explained(asker, TEXT, method="gradients")
    (ours,) = explained(asker, TEXT)
    assert ours.method == "ablation" and ours.gap is None


def test_what_cannot_be_explained_is_said(classifier: Path) -> None:
    with pytest.raises(DataError, match="knows no label 'stolen'"):
        explained(asker_of(classifier, "classify"), TEXT, label="stolen")
    asker = asker_of(classifier, "classify")
    embeds = Asker(
        type(asker.task)(asker.task.config), asker.labels, asker.encoder, asker.objective, asker.context
    )
    embeds.task.kind = "embed"  # type: ignore[misc]
    with pytest.raises(RunError, match="cannot be explained"):
        readings_of(embeds, embeds.task.example(Record("here", {"text": "a"}), labelled=False))


class Text(HTMLParser):
    """What a browser would show of paragraphs, and the tags of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.shown, self.tags, self._inside = list[str](), list[str](), False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "p" and ("class", "text") in attrs:
            self._inside = True
            self.shown.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.shown[-1] += data


def test_the_page_shows_the_text_and_runs_nothing(classifier: Path) -> None:
    text = "is <script>alert('lost')</script> my card & money?"
    page = write_explanations("Why", [explained(asker_of(classifier, "classify"), text)])
    parsed = Text()
    parsed.feed(page)
    assert parsed.shown == [text]
    assert "script" not in parsed.tags and "mark" in parsed.tags and "table" in parsed.tags
    assert "http" not in page
