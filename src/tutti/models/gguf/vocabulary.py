"""The tokenizer of a Hugging Face directory, as a GGUF file has it: tokens, and how text becomes them.

Byte-level BPEs are written with their merges; llama.cpp cuts text first by a pattern that it knows by name, so the
pattern of a tokenizer must be one of those. SentencePiece's BPEs (Llama 2, Mistral) are in `pieces.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tutti.core import ModelError
from tutti.models.gguf.pieces import has_pieces, is_byte, say_pieces, why_no_pieces
from tutti.models.prompts import begin_of

#: What llama.cpp calls patterns, by what they cut: gpt-2's is that of `ByteLevel` alone, and where digits are cut
#: from each other before, it has many names.
_GPT2, _DIGITS = "gpt-2", "smollm"
_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": "qwen2",
}


def write_vocabulary(writer: Any, directory: Path, entries: int) -> None:
    """Add the tokenizer in `directory` to `writer`, for a model with a vocabulary of `entries`.

    Raises:
        ModelError: llama.cpp has no such tokenizer.
    """
    from transformers import AutoTokenizer  # takes seconds

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    merges = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"].get("merges", ())
    ]
    pieces = has_pieces(content)
    if pieces:
        if (reason := why_no_pieces(content, merges)) is not None:
            raise _no_such(directory, reason)
        say_pieces(writer, content, merges, entries)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pattern_of(content, directory))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    _say_tokens(writer, tokenizer, entries, content["model"].get("unk_token") if pieces else None)
    hugging_face: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    for name in ("bos", "eos", "pad", "unk"):
        if (number := getattr(hugging_face, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(bool(begin_of(hugging_face)))
    if isinstance(hugging_face.chat_template, str):
        writer.add_chat_template(hugging_face.chat_template)


def _say_tokens(writer: Any, tokenizer: Tokenizer, entries: int, unknown: str | None) -> None:
    """All `entries`, and of what kind each is. `unknown`: what stands for what is no other, of SentencePiece's."""
    import gguf

    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for number in range(entries):
        kind = gguf.TokenType.NORMAL
        if number not in names:
            kind = gguf.TokenType.UNUSED
        elif unknown is not None and names[number] == unknown:
            kind = gguf.TokenType.UNKNOWN
        elif number in added:
            kind = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
        elif unknown is not None and is_byte(names[number]):
            kind = gguf.TokenType.BYTE
        tokens.append(names.get(number, f"[unused {number}]"))
        types.append(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def _pattern_of(content: dict[str, Any], directory: Path) -> str:
    """llama.cpp's name for how the tokenizer cuts text."""
    normalizer = (content.get("normalizer") or {}).get("type")
    # Qwen's tokenizer composes signs first (NFC); llama.cpp takes them as they come, which they mostly are already.
    if content["model"]["type"] != "BPE" or normalizer not in (None, "NFC"):
        raise _no_such(directory, "is no byte-level BPE")
    before = content.get("pre_tokenizer") or {}
    parts = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    if not parts or parts[-1].get("type") != "ByteLevel":
        raise _no_such(directory, "is no byte-level BPE")
    if parts[-1].get("add_prefix_space"):
        raise _no_such(directory, "puts a space before every text")
    if len(parts) == 1 and parts[0].get("use_regex", True):
        return _GPT2
    split = parts[0]
    if (
        split == {"type": "Digits", "individual_digits": True}
        and parts[1:]
        and parts[1].get("use_regex", True)
    ):
        return _DIGITS
    pattern = split.get("pattern", {}).get("Regex") if split.get("type") == "Split" else None
    if len(parts) == 2 and pattern in _PATTERNS and not parts[1].get("use_regex", True):
        return _PATTERNS[pattern]
    raise _no_such(directory, "cuts text in a way of its own")


def _no_such(directory: Path, reason: str) -> ModelError:
    return ModelError(
        f"the tokenizer in {directory} {reason}, so it is not written as GGUF here",
        "train with data.tokenizer: bpe, or try llama.cpp's own convert_hf_to_gguf.py on the export of the run",
    )
