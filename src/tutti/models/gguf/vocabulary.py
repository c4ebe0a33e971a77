"""The tokenizer of a Hugging Face directory, as a GGUF file has it: tokens, their merges, and how text is cut first.

llama.cpp cuts text by a pattern that it knows by name, so the pattern of a tokenizer must be one of those.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tutti.core import ModelError

#: What llama.cpp calls patterns, by what they cut: gpt-2's is that of `ByteLevel` alone.
_GPT2 = "gpt-2"
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
    import gguf
    from transformers import AutoTokenizer  # takes seconds

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pattern_of(content, directory))
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for number in range(entries):
        kind = gguf.TokenType.NORMAL
        if number not in names:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            kind = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
        tokens.append(names.get(number, f"[unused {number}]"))
        types.append(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    hugging_face: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    for name in ("bos", "eos", "pad", "unk"):
        if (number := getattr(hugging_face, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = hugging_face("a")["input_ids"]
    writer.add_add_bos_token(len(ids) > 1 and ids[0] == hugging_face.bos_token_id)
    if isinstance(hugging_face.chat_template, str):
        writer.add_chat_template(hugging_face.chat_template)


def _pattern_of(content: dict[str, Any], directory: Path) -> str:
    """llama.cpp's name for how the tokenizer cuts text."""
    if content["model"]["type"] != "BPE" or content.get("normalizer") is not None:
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
    pattern = split.get("pattern", {}).get("Regex") if split.get("type") == "Split" else None
    if len(parts) == 2 and pattern in _PATTERNS and not parts[1].get("use_regex", True):
        return _PATTERNS[pattern]
    raise _no_such(directory, "cuts text in a way of its own")


def _no_such(directory: Path, reason: str) -> ModelError:
    return ModelError(
        f"the tokenizer in {directory} {reason}, so it is not written as GGUF here",
        "train with data.tokenizer: bpe, or try llama.cpp's own convert_hf_to_gguf.py on the export of the run",
    )
