"""GGUF files with other tokenizers than Tutti's own: SentencePiece's kind, and digits that are cut apart."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gguf_toys import HELD, SHAPE, TEXT, drawn, opened, said, tied_llama, written
from tutti.core import ModelError
from tutti.data.tokenizer import save_tokenizer, train_bpe
from tutti.models.gguf import write_gguf

PIECES = 340


def pieces(directory: Path, *, before: str = "first", whole: bool = True) -> Path:
    """As Llama 2's is kept: every way to make a token is a merge (`whole`), in the order of the tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=marks, show_progress=False)
    text = TEXT.replace("🦙", "") + "aaa aaaaa " * 20  # of which some tokens can be made in several ways
    trained.train_from_iterator([text], trainer)
    content = json.loads(trained.to_str())["model"]
    vocabulary = content["vocab"]
    joined = {"".join(merge): None for merge in content["merges"]}
    merges = [
        (token[:at], token[at:])
        for token in joined
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    if not whole:
        merges.remove(next(b for a, b in pairwise(merges) if "".join(a) == "".join(b)))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if before == "normalizer":  # as older files have it
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=before, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)
    return directory


def with_pieces() -> PreTrainedModel:
    shape = SHAPE | {"vocab_size": PIECES, "bos_token_id": 1, "eos_token_id": 2}
    return drawn(LlamaForCausalLM, LlamaConfig(**shape))


def test_a_tokenizer_of_sentencepiece_is_written_with_scores(tmp_path: Path) -> None:
    reader = written(with_pieces(), pieces(tmp_path / "pieces"), tmp_path / "toy.gguf")
    assert said(reader, "tokenizer.ggml.model") == "llama" and said(reader, "tokenizer.ggml.add_space_prefix")
    types = said(reader, "tokenizer.ggml.token_type")
    assert types[:3] == [2, 3, 3] and types[3:259] == [6] * 256 and set(types[259:]) == {1}
    tokens, scores = said(reader, "tokenizer.ggml.tokens"), said(reader, "tokenizer.ggml.scores")
    assert tokens[3 + 10] == "<0x0A>" and len(scores) == len(tokens) == PIECES
    joined = sorted((token for token in tokens[259:] if len(token) > 1), key=tokens.index)
    assert [scores[tokens.index(token)] for token in joined] == [-1.0 - rank for rank in range(len(joined))]
    assert said(reader, "tokenizer.ggml.add_bos_token") and said(reader, "tokenizer.ggml.bos_token_id") == 1


def test_merges_that_scores_cannot_say_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not make '.+' of '.+' and '.+'"):
        write_gguf(with_pieces(), pieces(tmp_path / "some", whole=False), tmp_path / "toy.gguf", "toy")
    directory = pieces(tmp_path / "mixed")
    content = json.loads((directory / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    first = "".join(merges[0])
    again = next(at for at, merge in enumerate(merges) if len(merge[0] + merge[1]) > len(first))
    merges.insert(again + 1, merges.pop(0))
    merges.insert(0, merges[again - 1])
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="does not merge in the order of its tokens"):
        write_gguf(with_pieces(), directory, tmp_path / "toy.gguf", "toy")
    content["pre_tokenizer"]["split"] = True
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="treats spaces in a way of its own"):
        write_gguf(with_pieces(), directory, tmp_path / "toy.gguf", "toy")


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_digits_that_are_cut_apart_have_a_name(normalizer: Any, tmp_path: Path) -> None:
    """As in SmolLM's tokenizer; and NFC, which llama.cpp leaves to whoever writes."""
    made = train_bpe([TEXT], 300, exactly=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    if normalizer is not None:
        made.normalizer = normalizer
    save_tokenizer(made, tmp_path / "digits")
    reader = written(tied_llama(), tmp_path / "digits", tmp_path / "toy.gguf")
    assert said(reader, "tokenizer.ggml.pre") == "smollm"
    if normalizer is not None:
        return
    model, tokenizer = opened(tmp_path / "toy.gguf"), AutoTokenizer.from_pretrained(tmp_path / "digits")
    for text in (TEXT, "1234 x56"):
        theirs = model.tokenize(text.encode(), add_bos=True, special=False)
        assert theirs == tokenizer(text, split_special_tokens=True)["input_ids"], text


@pytest.mark.parametrize("before", ["normalizer", "first", "never"])
def test_llama_cpp_makes_the_same_pieces(before: str, tmp_path: Path) -> None:
    directory = pieces(tmp_path / "pieces", before=before)
    write_gguf(with_pieces(), directory, tmp_path / "toy.gguf", "toy")
    model, tokenizer = opened(tmp_path / "toy.gguf"), AutoTokenizer.from_pretrained(directory)
    for text in (TEXT, HELD, "x", "  x  y", "a\r\nb\u3000c 🦙", "didn't the the", "aaaa aaa"):
        if text.startswith(" ") and before == "first":
            continue  # transformers puts no second space before it, llama.cpp does
        theirs = model.tokenize(text.encode(), add_bos=True, special=False)
        assert theirs == tokenizer(text)["input_ids"], text
