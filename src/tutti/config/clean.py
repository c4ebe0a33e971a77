"""What is done to raw text before it is tokenized."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from tutti.config.fields import Auto, Fraction, NonNegative, Positive, Section

#: Of personal data, what patterns can find (`tutti.redact.KINDS`).
PERSONAL = (
    "API_KEY",
    "CREDIT_CARD",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "PHONE_NUMBER",
    "URL_WITH_PASSWORD",
    "US_SSN",
)


class Preset(NamedTuple):
    """What `auto` means."""

    unicode: bool
    shortest: int
    letters: float
    repetition: bool
    near_duplicates: float
    decontaminate: int


PRESETS = {
    "off": Preset(False, 0, 0.0, False, 0.0, 0),
    "standard": Preset(True, 50, 0.5, False, 0.8, 13),
    "web": Preset(True, 50, 0.6, True, 0.8, 13),
}


class CleanConfig(Section):
    """What is mended, left out and hidden in raw text, in this order. `clean: standard` is short for
    `{preset: standard}`: everything that is `auto` by default; what is not is asked for by name. What was done is
    counted, with examples."""

    preset: Literal["off", "standard", "web"] = Field(
        default="off",
        description="What `auto` means below. `standard` is for any text, `web` for pages that nobody chose.",
    )
    unicode: bool | Auto = Field(
        default="auto",
        description="Mend text that was decoded wrongly (ftfy), take out control characters, normalise to NFC; "
        "standard, web: `true`.",
    )
    headers: bool = Field(
        default=False, description="Take comments about licence and copyright off the head of source code."
    )
    shortest: NonNegative | Auto = Field(
        default="auto", description="Leave out documents of fewer characters; standard, web: 50."
    )
    longest: Positive | None = Field(
        default=None, description="Leave out documents of more characters; `null`: none."
    )
    letters: Fraction | Auto = Field(
        default="auto",
        description="Leave out documents of whose characters (white space aside) a smaller share are letters or "
        "digits; standard: 0.5, web: 0.6.",
    )
    repetition: bool | Auto = Field(
        default="auto",
        description="Leave out documents that repeat themselves, by the limits of Gopher (Rae et al. 2021, table A1); "
        "web: `true`. They are for prose: manuals with much code fall behind them.",
    )
    languages: list[str] | None = Field(
        default=None,
        description="Leave out documents in other languages than these, such as `[en, de]` (py3langid); `null`: none.",
    )
    redact: bool | list[str] = Field(
        default=False,
        description="Put `[KIND]` in place of personal data that patterns find; or only of the kinds in a list: "
        f"{', '.join(PERSONAL)}.",
    )
    near_duplicates: Fraction | Auto = Field(
        default="auto",
        description="Leave out documents that share at least so much of their five-word sequences with an earlier one "
        "(Jaccard, estimated by MinHash); 0: none; standard, web: 0.8.",
    )
    decontaminate: NonNegative | Auto = Field(
        default="auto",
        description="Leave out training documents that share at least half of the sequences of so many words, of their "
        "own or of its, with a document of validation, test or `against`; 0: none; standard, web: 13.",
    )
    against: list[str] = Field(
        default_factory=list,
        description="Texts, as `source` has them, that must not be learned, such as the benchmarks that a model is "
        "judged by; needs `decontaminate`.",
    )
    index_memory: str = Field(
        default="256MB",
        pattern=r"^\d+(\.\d+)?(MB|GB)$",
        description="Memory for the search for near duplicates; what does not fit stays on disk and is read more "
        "often.",
    )

    @field_validator("redact")
    @classmethod
    def _kinds_are_known(cls, value: bool | list[str]) -> bool | list[str]:
        unknown = set(value) - set(PERSONAL) if isinstance(value, list) else set[str]()
        if unknown:
            raise ValueError(f"patterns do not know {min(unknown)}; they know {', '.join(PERSONAL)}")
        return value

    @field_validator("near_duplicates")
    @classmethod
    def _is_near(cls, value: float | str) -> float | str:
        if isinstance(value, float) and 0 < value < 0.5:
            raise ValueError("near_duplicates below 0.5 would leave out texts that are not alike; 0 is none")
        return value

    @model_validator(mode="after")
    def _compares_with_something(self) -> CleanConfig:
        if self.against and not self.settled().decontaminate:
            raise ValueError("clean.against needs clean.decontaminate, such as 13, or preset: standard")
        return self

    def settled(self) -> CleanConfig:
        """The same with a value for every `auto`."""
        values = PRESETS[self.preset]._asdict()
        return self.model_copy(
            update={key: value for key, value in values.items() if getattr(self, key) == "auto"}
        )


def clean_section(value: Any) -> Any:
    """`clean: standard` is short for `{preset: standard}`."""
    return {"preset": value} if isinstance(value, str) else value
