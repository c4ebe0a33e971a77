"""What OpenAI's completions and chat completions may be asked, as far as it is known here; anything else is refused by
name, for a parameter that does nothing is worse than one that is missing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutti.serve.engine import Sampling

#: Texts for one request.
MOST_CHOICES = 16
_Text = Annotated[str, Field(min_length=1)]
#: That a tokenizer can read: JSON can spell half a letter (\ud800), and a string without bounds takes it.
_Readable = Annotated[str, Field(min_length=0)]


class PlainText(BaseModel):
    """Any text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]

    @property
    def followed(self) -> None:
        """There is none."""


class JsonObject(BaseModel):
    """Any object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_object"]

    @property
    def followed(self) -> dict[str, Any]:
        """What it follows."""
        return {"type": "object"}


class NamedSchema(BaseModel):
    """A JSON schema. It is always followed, `strict` or not; `name` and `description` are the caller's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    content: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchema(BaseModel):
    """JSON that follows a schema."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def followed(self) -> dict[str, Any]:
        """What it follows."""
        return self.json_schema.content


class _Asked(BaseModel):
    """What both have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: _Text | Annotated[list[_Text], Field(max_length=4)] | None = None
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    response_format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] | None = None
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] | None = None
    #: Said of the caller, for the caller's own use: nothing here depends on it.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    #: Taken if they change nothing.
    presence_penalty: float = Field(0.0, ge=0, le=0)
    frequency_penalty: float = Field(0.0, ge=0, le=0)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that answers follow; None: they are any text."""
        return None if self.response_format is None else self.response_format.followed

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with how much it was."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, choice: int, logprobs: int | None) -> Sampling:
        """Of answer number `choice`: answers to one seed differ among each other."""
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        return Sampling(self.temperature, self.top_p, self.top_k, seed, logprobs)


class CompletionAsked(_Asked):
    """`POST /v1/completions`."""

    prompt: _Readable | list[_Readable] | list[int] | list[list[int]]
    suffix: _Readable | None = None
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] = False
    best_of: Literal[1] = 1


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]

    @model_validator(mode="after")
    def _only_text(self) -> Message:
        if isinstance(self.content, list):
            parts = [part.get("text") if part.get("type") == "text" else None for part in self.content]
            if any(not isinstance(part, str) for part in parts):
                raise ValueError("this model reads text only")
            self.content = "".join(str(part) for part in parts)
        if any("\ud800" <= letter <= "\udfff" for letter in self.content):
            raise ValueError("this is no text: half of a letter is missing")
        return self


class ChatAsked(_Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most_tokens(self) -> int | None:
        """Of the answer, as the caller wants; None: what there is room for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many likely tokens are told."""
        return (self.top_logprobs or 0) if self.logprobs else None
