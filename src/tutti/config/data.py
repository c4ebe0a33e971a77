"""Where data comes from, and how it becomes tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tutti.config.clean import CleanConfig, clean_section
from tutti.config.fields import Auto, Fraction, Positive, Section

#: How far from 1 the weights of a mixture may add up: thirds are written 0.33.
_WEIGHTS_OFF = 0.015


class DataConfig(Section):
    """Where the text comes from and how it becomes tokens."""

    source: str | list[str] = Field(
        default="python-stdlib",
        description="`python-stdlib` (the source of the Python standard library), a file, a folder, a glob, "
        "an fsspec URL, `hf:NAME?split=SPLIT` (a data set of the Hugging Face hub or in its format on this disk), "
        "`code:FOLDER` (all source code below it), or a list of these. Folders are read recursively for `*.txt`, "
        "`*.md`, `*.jsonl`, `*.py`, compressed or not.",
    )
    weights: list[float] | None = Field(
        default=None,
        description="Share of the training text that each entry of `source` gets, in order; they add up to 1. Text is "
        "repeated or left out, by the hash of its content, so that the whole stays about as large as it is.",
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
    format: Literal["auto", "text", "jsonl", "csv", "tsv", "conll", "json", "parquet", "html", "pdf"] = Field(
        default="auto",
        description="`auto` goes by the file's ending (before `.gz`, `.bz2`, `.xz`, `.zst`); a file of text, HTML or "
        "PDF is one document. `conll` is for labelled examples (see `task`), which `text`, `html` and `pdf` are not.",
    )
    text_field: str = Field(
        default="text", description="The field, or column, that holds the text of a document."
    )
    encoding: str = Field(
        default="utf-8", description="Encoding of text files (`python-stdlib` knows its own)."
    )
    on_bad_encoding: Literal["fail", "skip", "replace"] = Field(
        default="fail",
        description="What to do with a file that does not decode: stop, leave it out, or put U+FFFD.",
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do with a row of raw text that is broken or has no text field: stop, or leave it out.",
    )
    on_bad_file: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do with a file of raw text that is damaged or vanishes: stop, or leave all of it out.",
    )
    on_empty: Literal["fail", "skip"] = Field(
        default="fail", description="What to do with a labelled example without text: stop, or leave it out."
    )
    deduplicate: bool = Field(
        default=True,
        description="Leave out documents that are exactly equal to an earlier one, and training examples whose text is "
        "kept for validation or test.",
    )
    clean: Annotated[CleanConfig, BeforeValidator(clean_section)] = Field(
        default_factory=CleanConfig,
        description="What is mended, left out and hidden in raw text: `off`, `standard`, `web`, or a mapping.",
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
    most_unknown: Fraction = Field(
        default=0.5,
        description="Refuse a tokenizer to which a larger share of the text's tokens is unknown.",
    )
    cache: str = Field(
        default="~/.cache/tutti",
        description="Directory of prepared data, shared among runs; prepared text is found there by its content.",
    )
    remote_cache: str = Field(
        default="10GB",
        pattern=r"^\d+(\.\d+)?(MB|GB)$",
        description="Room in `cache` for copies of files that are read from URLs; what was read longest ago goes.",
    )

    @model_validator(mode="after")
    def _weights_add_up(self) -> DataConfig:
        if self.weights is None:
            return self
        entries = [self.source] if isinstance(self.source, str) else self.source
        if len(self.weights) != len(entries):
            raise ValueError(
                f"weights has {len(self.weights)} numbers and source {len(entries)} entries; give one for each"
            )
        total = sum(self.weights)
        if min(self.weights) < 0 or total <= 0:
            raise ValueError("weights must be shares of 0 or more, not all 0")
        if abs(total - 1) > _WEIGHTS_OFF:
            shares = ", ".join(f"{weight / total:.3g}" for weight in self.weights)
            raise ValueError(f"weights add up to {total:g}, not to 1; in proportion they are [{shares}]")
        return self

    @model_validator(mode="after")
    def _shares_leave_something(self) -> DataConfig:
        if self.validation + self.test >= 0.9:
            raise ValueError(
                "validation and test together take 90 % or more of the text; leave more to train on"
            )
        return self
