"""Tiny pretrained encoders and labelled examples for tests: real files, as a user has them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, ModernBertConfig, PreTrainedTokenizerFast

WORDS = [
    "the", "a", "my", "your", "card", "transfer", "money", "bank", "lost", "stolen", "pay", "fee",
    "exchange", "rate", "account", "open", "close", "help", "please", "why", "where", "when", "is",
    "was", "not", "how", "did", "arrive", "late", "wrong", "price", "flight", "city", "paris", "london",
    "anna", "bob", "acme", "corp", "meets", "in", "works", "for", "visits", "and", "or", "new", "york",
]  # fmt: skip


def write_encoder(directory: Path, kind: str = "bert") -> Path:
    """A fresh tiny encoder of 32 numbers a token, with a tokenizer of whole words and letters, as a model directory."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    starts = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'")
    vocabulary = {
        word: number for number, word in enumerate(dict.fromkeys([*specials, *WORDS, *starts, *letters]))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = (
        BertConfig(**shape) if kind == "bert" else ModernBertConfig(**shape, bos_token_id=2, eos_token_id=3)
    )
    AutoModel.from_config(config).save_pretrained(directory)
    return directory


def write_intents(directory: Path, count: int = 120) -> Path:
    """`intents.tsv`: three intents that a word gives away, with columns text and label."""
    signs = {"lost_card": "lost", "exchange": "exchange", "late_transfer": "late"}
    path = directory / "intents.tsv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["text", "label"])
        for number in range(count):
            label = sorted(signs)[number % 3]
            filler = " ".join(WORDS[(number * 7 + place) % 30] for place in range(2 + number % 9))
            rows.writerow([f"{filler} {signs[label]} {number}", label])
    return path


def write_names(directory: Path, count: int = 60) -> Path:
    """`names.conll`: people, places and companies in short sentences."""
    people, places, companies = ("anna", "bob"), (("paris",), ("new", "york")), (("acme", "corp"), ("acme",))
    lines: list[str] = []
    for number in range(count):
        person, place = people[number % 2], places[number % 3 % 2]
        company = companies[number % 5 % 2]
        words = [(person, "B-PER"), ("works", "O"), ("for", "O")]
        words += [(word, ("B-" if at == 0 else "I-") + "ORG") for at, word in enumerate(company)]
        words += [
            ("in", "O"),
            *((word, ("B-" if at == 0 else "I-") + "LOC") for at, word in enumerate(place)),
        ]
        words.append((str(number), "O"))
        lines += [f"{word}\t{tag}" for word, tag in words] + [""]
    path = directory / "names.conll"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
