"""Entities of any writing: whoever gives each token its right tag says every span, whatever the tokenizer."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from encoders import write_jsonl
from tutti.config.data import DataConfig
from tutti.config.task import TaskConfig
from tutti.data.labelled import Reader, encoder_of, prepare_examples
from tutti.tasks import Record, make_task
from tutti.tasks.words import words_of

#: Texts with their entities in brackets.
MARKED = [
    "我在[北京]工作。", "他住在[東京都]，她去[上海]。", "[山田太郎]は[京都]でコーヒーを飲む",
    "[สมชาย]รัก[กรุงเทพ]", "[สมชาย][มานะ]มา", "[ແສງ]ຢູ່[ວຽງຈັນ]", "[အောင်]သည်[ရန်ကုန်]တွင်", "[សុខ]នៅ[ភ្នំពេញ]",
    "राजा [दिल्ली] गए", "[مُحَمَّد] جاء", "می\u200cخواهم [تهران]", "[Micro\u00adsoft] ist da", "met [Jose\u0301] today",
    "[McDonald's] sold [C++] (by [Anna])...", "[👩\u200d🚀 Anna] in [서울] 여행",
]  # fmt: skip


def _records() -> list[dict[str, Any]]:
    found = []
    for marked in MARKED:
        text, spans = "", list[dict[str, Any]]()
        for part in re.split(r"(\[.*?\])", marked):
            if part.startswith("["):
                spans.append({"start": len(text), "end": len(text) + len(part) - 2, "label": "X"})
            text += part.strip("[]")
        found.append({"text": text, "spans": spans})
    return found


def _pretrained(directory: Path, kind: str) -> str:
    """A tokenizer of somebody else's, that knows the texts by heart: whole words, or pieces of them."""
    texts = [record["text"] for record in _records()] * 20
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        words = {word: 0 for text in texts for word in text.split()}
        tokenizer = Tokenizer(
            models.WordPiece({w: n for n, w in enumerate([*specials, *words])}, unk_token="[UNK]")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=600, special_tokens=specials, unk_token="[UNK]", show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    else:  # as Llama 3 cuts: a sign goes with the word behind it
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(
            Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|\s?[^\s\p{L}\p{N}]+|\s+"),
            "isolated",
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
        trainer = trainers.BpeTrainer(
            vocab_size=2000, special_tokens=specials, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
    numbers = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=numbers)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("kind", ["bpe", "characters", "wordpiece", "unigram", "bytes"])
def test_right_tags_are_right_spans_in_every_writing(tmp_path: Path, kind: str) -> None:
    records = _records()
    source = write_jsonl(tmp_path / "x.jsonl", records * 3)
    task = make_task(TaskConfig(kind="tag"))
    reader = Reader(128, types=False)
    tokenizer = kind if kind in ("bpe", "characters") else _pretrained(tmp_path / "given", kind)
    config = DataConfig(
        source=str(source),
        tokenizer=tokenizer,
        cache=str(tmp_path / "cache"),
        validation=0.0,
        deduplicate=False,
    )
    prepared = prepare_examples(config, task, reader, lambda _: None)
    table, examples = prepared.parts["train"].table, prepared.parts["train"].read()
    answers = np.zeros((len(table), 2 * max(len(table[n]["tags"]) for n in range(len(table)))))
    for number, line in enumerate(answers):
        line[: 2 * len(table[number]["tags"]) : 2] = table[number]["tags"]
    said = task.decode(answers, table, examples, prepared.labels)
    for record, one in zip(records * 3, said, strict=True):
        assert [{key: e[key] for key in ("start", "end", "label")} for e in one["entities"]] == record[
            "spans"
        ]
    assert task.score(answers, table, examples, prepared.labels)["f1"] == 1.0

    # Whoever is asked reads what was learned; so does transformers, of what is exported.
    encoder = encoder_of(prepared, task, reader)
    asked = [task.example(Record("x", {"text": one["text"]}), labelled=False) for one in records]
    theirs = AutoTokenizer.from_pretrained(prepared.tokenizer_directory)
    for number, (row,) in enumerate(task.rows(asked, prepared.labels, encoder)):
        assert row["input_ids"] == table[number]["input_ids"] == theirs(records[number]["text"])["input_ids"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna visits Zzyx-ville_2!!", "Anna visits Zzyx - ville _ 2 ! !"),
        ("राजा गए", "राजा गए"),
        ("Jose\u0301 a\u00adb می\u200cخواهم", "Jose\u0301 a\u00adb می\u200cخواهم"),
        ("รักที่นี่", "รั ก ที่ นี่"),
        ("我住Köln区", "我 住 Köln 区"),
        ("ガ" + unicodedata.normalize("NFD", "ガ") + "𠮷", f"ガ {unicodedata.normalize('NFD', 'ガ')} 𠮷"),
        ("👩\u200d🚀x", "👩\u200d 🚀 x"),
    ],
)
def test_a_words_marks_belong_to_it_and_signs_stand_alone(text: str, words: str) -> None:
    assert [text[start:end] for start, end in words_of(text)] == words.split(" ")
