"""Where data comes from, and how it becomes tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tutti.config.fields import Auto, Fraction, Positive, Section


class DataConfig(Section):
    """Where the text comes from and how it becomes tokens."""

    source: str | list[str] = Field(
        default="python-stdlib",
        description="`python-stdlib` (the source of the Python standard library), a file, a folder, a glob, "
        "an fsspec URL, or a list of these; labelled examples also `hf:NAME?split=SPLIT`, a data set of the Hugging "
        "Face hub or in its format on this disk. Folders are read recursively for `*.txt`, `*.md`, `*.jsonl`, `*.py`.",
    )
    validation_source: str | list[str] | None = Field(
        default=None,
        description="Text that is validation already; when given, nothing is split off `source`.",
    )
    extra_source: str | list[str] | None = Field(
        default=None,
        description="More labelled examples that are only trained on, none of them kept aside, such as those that "
        "`tutti label` guessed; those whose text is among the others are left out.",
    )
    test_source: str | list[str] | None = Field(
        default=None,
        description="Labelled examples for the final test; when given, nothing is split off `source` for it.",
    )
    format: Literal["auto", "text", "jsonl", "csv", "tsv", "conll", "json", "parquet"] = Field(
        default="auto",
        description="`auto` goes by the file's ending; a text file is one document. All but `text` and `jsonl` are for "
        "labelled examples (see `task`).",
    )
    text_field: str = Field(default="text", description="The field of a JSONL line that holds the text.")
    encoding: str = Field(
        default="utf-8", description="Encoding of text files (`python-stdlib` knows its own)."
    )
    on_bad_encoding: Literal["fail", "skip", "replace"] = Field(
        default="fail",
        description="What to do with a file that does not decode: stop, leave it out, or put U+FFFD.",
    )
    on_empty: Literal["fail", "skip"] = Field(
        default="fail", description="What to do with a labelled example without text: stop, or leave it out."
    )
    deduplicate: bool = Field(
        default=True,
        description="Leave out documents that are exactly equal to an earlier one, and training examples whose text is "
        "kept for validation or test.",
    )
    tokenizer: str = Field(
        default="auto",
        description="`bpe` (byte-level, trained on the text), `characters`, or a Hugging Face tokenizer directory; "
        "`auto`: that of `model.path`, where weights are taken from there, else `bpe`.",
    )
    vocabulary: Positive | Auto = Field(
        default="auto",
        description="Entries of a trained `bpe` vocabulary; `auto` goes by the size of the text.",
    )
    sequence: Positive = Field(default=256, description="Tokens of one training sample.")
    split: Literal["auto", "document", "tail"] = Field(
        default="auto",
        description="`document`: whole documents go to one part by the hash of their content; `tail`: the last "
        "part of every document; `auto`: `document` unless there are fewer than 20 of them.",
    )
    validation: Fraction = Field(default=0.05, description="Share of the text that is kept for validation.")
    test: Fraction = Field(default=0.0, description="Share of the text that is kept for a final test.")
    cache: str = Field(
        default="~/.cache/tutti",
        description="Directory of prepared data, shared among runs; prepared text is found there by its content.",
    )

    @model_validator(mode="after")
    def _shares_leave_something(self) -> DataConfig:
        if self.validation + self.test >= 0.9:
            raise ValueError(
                "validation and test together take 90 % or more of the text; leave more to train on"
            )
        return self
