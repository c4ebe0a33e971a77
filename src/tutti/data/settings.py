"""The sizes that decide how text is cut. Whoever changes one changes the prepared data: raise FORMAT."""

from __future__ import annotations

#: Version of everything written to the cache; part of the key under which prepared text is found.
FORMAT = 2

#: Bytes read from a file at a time.
BLOCK_BYTES = 1 << 18

#: Characters given to the tokenizer as one string, at most.
PIECE_CHARACTERS = 1 << 15

#: Characters of a string that byte-level BPE takes fastest; how it is cut changes no token.
SHORT_CHARACTERS = 512

#: Characters that are encoded by one call (several pieces: the tokenizer works on them in parallel).
BATCH_CHARACTERS = 8 * PIECE_CHARACTERS

#: A longer document is prepared in segments of about so many characters, so that it may span shards.
SEGMENT_CHARACTERS = 1 << 20

#: Smallest aim for the UTF-8 bytes of text in one shard, and the largest number of shards of a part.
SHARD_TEXT_BYTES = 4_000_000
SHARDS_OF_A_PART = 2048

#: A `bpe` vocabulary is trained on so many bytes of text at most.
TOKENIZER_SAMPLE_BYTES = 32_000_000

#: Text that has to be parsed or cleaned first is made ready in units of about so many bytes.
UNIT_BYTES = 16_000_000

#: A longer text is cleaned in documents of so many characters, each by itself.
LONGEST_DOCUMENT_CHARACTERS = 1 << 23

#: Below so much text left to encode, starting worker processes costs more than it saves.
BYTES_WORTH_PROCESSES = 16_000_000

#: Folders are read for files with these endings, and those of compressed files behind them.
ENDINGS = (".txt", ".md", ".jsonl", ".py")

#: Source code, which `code:FOLDER` reads: by the endings of its files.
CODE_ENDINGS = tuple(
    f".{ending}"
    for ending in (  # noqa: SIM905
        "py pyi pyx c h cc cpp cxx hh hpp hxx cu cuh m mm rs go java kt kts scala groovy clj cljs cs fs vb js jsx mjs "
        "cjs ts tsx vue svelte rb php pl pm lua r jl swift dart ex exs erl hrl hs lhs ml mli elm nim zig v sv vhd vhdl "
        "sh bash zsh fish ps1 sql proto graphql tf cmake make mk gradle css scss sass less f f90 f95 f03 pas ada "
        "adb ads lisp el scm rkt asm s tcl sol"
    ).split()
)

#: Formats by how a name ends; any other file is text.
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".conll": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".json": "json",
    ".parquet": "parquet",
}

#: Formats of raw text alone.
TEXT_FORMATS = FORMATS | {".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf"}

#: What the address of a folder of source code begins with.
CODE = "code:"

#: What the address of a data set of the Hugging Face hub begins with.
HUB = "hf:"

#: The parts of a corpus.
PARTS = ("train", "validation", "test")

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
