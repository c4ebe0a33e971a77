"""What a model that does not write may be asked; as with texts (`schema`), anything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tutti.tasks.recommend import SHOWN

#: Of one request, as with OpenAI.
MOST_INPUTS = 2048


class _Asked(BaseModel):
    """What all have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    #: Said of the caller, for the caller's own use: nothing here depends on it.
    user: str | None = None


class Pair(BaseModel):
    """Two texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    pair: str


class ClassifyAsked(_Asked):
    """`POST /v1/classify`: a text, a pair of texts, or several."""

    input: str | Pair | Annotated[list[str | Pair], Field(min_length=1, max_length=MOST_INPUTS)]


class ExtractAsked(_Asked):
    """`POST /v1/extract`: a text, or several."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]


class ExplainAsked(_Asked):
    """`POST /v1/explain`: a text, or a pair. `label`: why this one, whether the model says so or not."""

    input: str | Pair
    label: str | None = None
    format: Literal["json", "html"] = "json"


class EmbeddingsAsked(_Asked):
    """`POST /v1/embeddings`, as OpenAI has it; tokens of another tokenizer mean nothing here."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


_History = list[str | int]


class RecommendAsked(_Asked):
    """`POST /v1/recommend`: what somebody had, in order, or what several had."""

    input: _History | Annotated[list[_History], Field(min_length=1, max_length=MOST_INPUTS)]
    top: int = Field(10, ge=1, le=SHOWN)


class Passage(BaseModel):
    """A question, and the text in which its answer stands."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    context: str


class AnswerAsked(_Asked):
    """`POST /v1/answer`: a question to a text, or several."""

    input: Passage | Annotated[list[Passage], Field(min_length=1, max_length=MOST_INPUTS)]


class QuestionAsked(_Asked):
    """`POST /v1/answer` of a service with documents. `max_tokens`: of an answer that is written."""

    question: str
    passages: int = Field(5, ge=1, le=20)
    max_tokens: int = Field(256, ge=1)
