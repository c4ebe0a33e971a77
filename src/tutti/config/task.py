"""What a model learns from labelled examples, where it is more than to continue text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tutti.config.fields import Auto, Fraction, Positive, Section

#: Tasks with labelled examples, and the fields of an example, with the names that files usually have for them.
FIELDS: dict[str, tuple[str, ...]] = {
    "classify": ("text", "pair", "label"),
    "tag": ("text", "spans", "tokens", "tags"),
    "relate": ("text", "label"),
    "answer": ("question", "context", "answers"),
    "recommend": ("items",),
    "embed": ("query", "text"),
    "chat": ("messages", "prompt", "response"),
    "translate": ("source", "target"),
    "summarise": ("text", "summary"),
}
#: What is learned from running text, nobody's labels.
FROM_TEXT = ("language_model", "masked_language_model")
#: Those whose models write.
WRITING = ("chat", "translate", "summarise")
#: Keys of the section that belong to some kinds only.
_OF_KINDS = {
    "multiple": ("classify",),
    "balance": ("classify", "relate"),
    "none": ("relate",),
    "unanswerable": ("answer",),
    "catalogue": ("recommend",),
    "repeats": ("recommend",),
    "contrast": ("classify",),
    "infill": ("language_model",),
    "recall": ("language_model",),
    "mask": ("masked_language_model",),
    "mask_by": ("masked_language_model",),
    "together": ("embed", "classify"),
}


#: Keys of the section `tune` that belong to some methods only.
_OF_METHODS = {
    "layers": ("last",),
    "rank": ("lora", "adalora"),
    "alpha": ("lora", "adalora"),
    "dropout": ("lora", "adalora"),
    "tokens": ("prompt",),
}


class TaskConfig(Section):
    """What the model is for."""

    kind: Literal[
        "language_model",
        "masked_language_model",
        "classify",
        "tag",
        "relate",
        "answer",
        "recommend",
        "embed",
        "chat",
        "translate",
        "summarise",
    ] = Field(
        default="language_model",
        description="From text: `language_model`: to continue it; `masked_language_model`: to guess what is hidden in "
        "it, as encoders are pretrained. From labelled examples: `classify`: one label (or several) "
        "for a text or a pair of texts; `tag`: names and other entities in a text; `relate`: what two marked entities "
        "of a text have to do with each other; `answer`: the stretch of a text that answers a question; "
        "`recommend`: what somebody wants next who had these things; `embed`: "
        "vectors that are alike where texts belong together; `chat`: "
        "what an assistant says in a talk, or answers to an instruction; `translate`, `summarise`: one text from "
        "another.",
    )
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="What your files call the fields of an example, where it is not their usual name, e.g. "
        "`{text: headline, label: sentiment}`.",
    )
    multiple: bool = Field(default=False, description="`classify`: a text may have several labels, or none.")
    balance: bool = Field(
        default=False,
        description="`classify`, `relate`: rare labels weigh more: the loss of each is multiplied by "
        "n ÷ (labels · n of it).",
    )
    mask: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="`masked_language_model`: share of the tokens that is to be guessed; `null`: 0.3.",
    )
    mask_by: Literal["tokens", "words", "spans"] | None = Field(
        default=None,
        description="`masked_language_model`: what is hidden: single tokens, whole words, or "
        "stretches of 1 to 10 words (4.5 on average); `null`: words.",
    )
    infill: Fraction = Field(
        default=0.0,
        description="`language_model`: share of the documents that are told prefix, suffix, middle, so that the model "
        "learns to write what is missing between two texts; half is usual for code.",
    )
    recall: Fraction = Field(
        default=0.0,
        description="`language_model`: share of the passages of which a part is told again, so that the model learns "
        "to copy: what a model from little text needs before it learns to summarise or to answer.",
    )
    none: str | None = Field(
        default=None,
        description="`relate`: the label that means no relation, such as `Other`; macro-F1 leaves it out.",
    )
    unanswerable: bool = Field(
        default=False,
        description="`answer`: some questions have no answer in their text, and saying so is right.",
    )

    catalogue: str | None = Field(
        default=None,
        description="`recommend`: a file with fields `item` and `text` that describe the items; like ones begin alike, "
        "and those that nobody had yet may stand in a history.",
    )
    repeats: bool = Field(
        default=False, description="`recommend`: what somebody had may be recommended to them again."
    )

    contrast: bool = Field(
        default=False,
        description="`classify`, from few examples: the encoder learns which texts have the same label, then a "
        "logistic regression on its vectors becomes the head.",
    )
    together: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="`embed`: pairs of a group, each told apart from the others; `classify` with `contrast`: texts of "
        "a group. A sample of the run is such a group. `null`: 16 pairs, 64 texts.",
    )

    @property
    def learned(self) -> str:
        """What its model learned to do, in words."""
        names = {"language_model": "continue texts", "masked_language_model": "guess what is hidden in texts"}
        return names.get(self.kind, self.kind)

    @property
    def labelled(self) -> bool:
        """Whether it learns from examples of the user's, not from running text."""
        return self.kind not in FROM_TEXT

    @property
    def masked(self) -> bool:
        """Whether it guesses what is hidden in running text."""
        return self.kind == "masked_language_model"

    @property
    def asks(self) -> bool:
        """Whether the model is asked and answers by a head of its own; else it writes."""
        return self.labelled and self.kind not in WRITING

    @property
    def learns_head(self) -> bool:
        """Whether a head for labels or places learns together with what is below it."""
        return self.asks and self.kind not in ("embed", "recommend") and not self.contrast

    @model_validator(mode="after")
    def _belong(self) -> TaskConfig:
        known = FIELDS.get(self.kind, ())
        unknown = sorted(set(self.fields) - set(known))
        if unknown:
            there_are = ", ".join(known) or "none"
            raise ValueError(
                f"fields renames {', '.join(unknown)}, but the fields of {self.kind} are: {there_are}"
            )
        for name, kinds in _OF_KINDS.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"{name} belongs to kind {' and '.join(kinds)}, not to {self.kind}")
        if self.infill and self.recall:
            raise ValueError("infill and recall tell documents in two ways of their own; choose one")
        if self.kind == "classify" and self.together and not self.contrast:
            raise ValueError("together is for kind classify with contrast: true alone")
        if self.contrast and self.multiple:
            raise ValueError(
                "contrast asks whether two texts have the same label, so multiple must be false: one label a text"
            )
        return self


class TuneConfig(Section):
    """How much of a trained model learns."""

    method: Literal["full", "last", "lora", "adalora", "ia3", "prompt"] = Field(
        default="full",
        description="`full`: everything; `last`: the last `layers` blocks and the head; adapters and the head: `lora` "
        "(low-rank matrices beside every linear layer), `adalora` (the same, with rank for those layers that need it), "
        "`ia3` (a factor for each number of some layers); `prompt`: vectors that stand before what the model reads, "
        "and the head.",
    )
    layers: Positive = Field(default=2, description="`last`: blocks that learn.")
    rank: Positive = Field(
        default=8,
        description="`lora`: of its matrices; `adalora`: what is left of it in the end, on average.",
    )
    alpha: Positive | Auto = Field(
        default="auto",
        description="`lora`, `adalora`: what they add is multiplied by alpha ÷ rank (the rank that they begin with); "
        "`auto`: 2 · rank.",
    )
    dropout: Fraction = Field(default=0.0, description="`lora`, `adalora`: of their inputs.")
    tokens: Positive = Field(default=20, description="`prompt`: vectors of it.")
    quantize: Literal["int8", "int4"] | None = Field(
        default=None,
        description="Layers compute as if their weights were written in 8 or 4 bits already, so that `tutti compress` "
        "with that recipe changes little more; a step takes longer.",
    )

    @model_validator(mode="after")
    def _belong(self) -> TuneConfig:
        for name, default in idle_settings(self.method).items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} belongs to method {' and '.join(_OF_METHODS[name])}, not to {self.method}"
                )
        return self

    @model_validator(mode="after")
    def _whole_layers(self) -> TuneConfig:
        if self.quantize is not None and self.method not in ("full", "last"):
            raise ValueError(f"quantize needs layers that learn themselves, not {self.method}")
        return self


def idle_settings(method: str) -> dict[str, Any]:
    """The keys of the section `tune` that `method` has no use for, with their defaults."""
    fields = TuneConfig.model_fields
    return {name: fields[name].default for name, methods in _OF_METHODS.items() if method not in methods}


class RegulariseConfig(Section):
    """What keeps a model from learning few examples by heart."""

    label_smoothing: Fraction = Field(
        default=0.0, description="Share of a label's chance that is spread over all labels."
    )
    r_drop: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="R-Drop: weight of the difference between two passes with different dropout."
    )
    adversarial: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="FGM: how far embeddings are pushed in the direction that hurts most."
    )
    word_drop: Fraction = Field(
        default=0.0, description="Share of the words of a training text that is left out, others each time."
    )
    word_swap: Fraction = Field(
        default=0.0, description="Share of the words of a training text that change places with the next."
    )

    @model_validator(mode="after")
    def _one_second_pass(self) -> RegulariseConfig:
        if self.r_drop and self.adversarial:
            raise ValueError("r_drop and adversarial both take a second pass; set one of them to 0")
        return self


class DistilConfig(Section):
    """Models that teach the one that learns, beside the labels, or the text."""

    teacher: str | list[str] | None = Field(
        default=None,
        description="A run, or a directory with an exported model, of the same task, labels and tokenizer (of models "
        "that write: the same vocabulary); several: the mean of what they think.",
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Share of the loss that is about the teachers; the rest is about the labels."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="Softens what both think: above 1 unlikely labels count more."
    )
    hidden: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Weight of how unlike the relations between tokens are in both last layers (MiniLM); 0: thoughts "
        "alone count. Of one teacher.",
    )
    reverse: bool = Field(
        default=False,
        description="The learner's thoughts are weighed by itself, not by the teachers: it seeks one of what they "
        "think likely rather than all.",
    )

    @model_validator(mode="after")
    def _one_to_look_into(self) -> DistilConfig:
        if self.hidden and len(self.teachers) > 1:
            raise ValueError("hidden is learned from one teacher; name one, or set hidden to 0")
        return self

    @property
    def teachers(self) -> list[str]:
        """Their places."""
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher or ())


class RememberConfig(Section):
    """What keeps a trained model from forgetting what it knew, while it learns something else."""

    source: str | list[str] | None = Field(
        default=None,
        description="Examples, or text, of what it knew, with the fields and in the formats of `data.source`: what it "
        "was trained on, or a part of that.",
    )
    replay: Fraction = Field(
        default=0.2,
        description="Share of the training examples, or of the text, that comes from `source`, drawn by the hash of "
        "its content; 0: none.",
    )
    ewc: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="EWC: how firmly each weight is held, the more the examples of `source` depend on it. `1`: as if "
        "they had been learned together with the new ones; 0: not at all.",
    )


def task_section(value: Any) -> Any:
    """`task: classify` is short for its kind."""
    return {"kind": value} if isinstance(value, str) else value


def remember_section(value: Any) -> Any:
    """`remember: FILE` is short for its source, as is a list of several."""
    return {"source": value} if isinstance(value, str | list) else value


def distil_section(value: Any) -> Any:
    """`distil: RUN` is short for its teacher, as is a list of several."""
    return {"teacher": value} if isinstance(value, str | list) else value


def tune_section(value: Any) -> Any:
    """`tune: lora` is short for its method."""
    return {"method": value} if isinstance(value, str) else value
