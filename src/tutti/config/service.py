"""What a service can be told: who may ask, how much, what is hidden, what is refused, and what is written down."""

from __future__ import annotations

from pydantic import Field, model_validator

from tutti.config.alerts import ServiceAlertsConfig
from tutti.config.fields import NonNegative, Positive, Section


class LimitsConfig(Section):
    """How much one request may take, and how many there may be. What is over is refused before it costs anything."""

    body_bytes: Positive = Field(
        default=1_000_000, description="Of a request's body; larger ones are told 413 before they are read."
    )
    requests: Positive = Field(
        default=256,
        description="Requests that are in the house at the same time; one more is told 429 before its body is read.",
    )
    texts: Positive | None = Field(
        default=None,
        description="Texts that one request may ask for (prompts × `n`); `null`: as many as slots.",
    )
    new_tokens: Positive | None = Field(
        default=None, description="Tokens of one answer at most; `null`: what the model has room for."
    )
    read_seconds: Positive = Field(
        default=20, description="For a request's headers, and again for its body, to arrive."
    )
    request_seconds: Positive = Field(
        default=600, le=600, description="For a whole answer, 600 at most; then it is told 504."
    )


class RedactConfig(Section):
    """Personal data that is replaced by its kind, such as `[EMAIL_ADDRESS]`. What is written down (logs, audit) is
    always redacted; what programs send and get only where it is asked for here, since it changes what the model reads
    and says."""

    inputs: bool = Field(default=False, description="In what the model is given.")
    outputs: bool = Field(default=False, description="In what it answers, streamed or whole.")
    model: str | None = Field(
        default=None,
        description="A run with `task: tag`, or what `tutti compress` made of it; its entities are hidden beside what "
        "patterns find.",
    )
    labels: list[str] | None = Field(
        default=None, description="Those of the model's labels that are hidden; `null`: all."
    )
    presidio: bool = Field(
        default=False, description="What Microsoft Presidio finds is hidden too; it has to be installed."
    )


class FilterConfig(Section):
    """Texts that are withheld because they are harmful: a list of wordings that ships with Tutti, a model, or a
    function of yours."""

    inputs: bool = Field(default=False, description="Refuse requests (400, `content_filter`).")
    outputs: bool = Field(
        default=False, description="End answers where it begins; `finish_reason` is then `content_filter`."
    )
    words: bool = Field(default=True, description="Judge by the list of wordings.")
    model: str | None = Field(
        default=None, description="A run with `task: classify` whose label decides, sentence by sentence."
    )
    labels: list[str] = Field(
        default_factory=list, description="The model's labels that mean harm; needed with `filter.model`."
    )
    chance: float = Field(
        default=0.5, gt=0, le=1, description="From which on the model's word for such a label counts."
    )
    function: str | None = Field(
        default=None,
        description="`package.module:name` of a Python function: text → the kind of harm, or None.",
    )

    @model_validator(mode="after")
    def _can_decide(self) -> FilterConfig:
        if self.model is not None and not self.labels:
            raise ValueError("filter.model needs filter.labels: which of its labels mean harm")
        if (self.inputs or self.outputs) and not (self.words or self.model or self.function):
            raise ValueError(
                "filter has nothing to judge by; set filter.words, filter.model or filter.function"
            )
        return self


class AuditConfig(Section):
    """A line of JSON for every request: when, by which key, what for, how it ended, and how much it was."""

    file: str | None = Field(default=None, description="Where to; `null`: nowhere.")
    log_prompts: bool = Field(
        default=False, description="Write down what was asked, too, redacted; answers never are."
    )
    file_bytes: Positive = Field(
        default=100_000_000,
        description="A file that is larger is set aside as `FILE.1`, and a new one begun.",
    )
    files: NonNegative = Field(
        default=10,
        description="Files that are set aside; the oldest one goes. `0`: what a full file holds goes.",
    )


class ReleaseConfig(Section):
    """When a service of releases (`tutti serve DIR`) goes back to the version before, by itself."""

    least_requests: Positive = Field(
        default=50, description="Of a new version, and of the one before, before they are compared."
    )
    error_margin: float = Field(
        default=0.05, ge=0, le=1, description="So much larger a share of requests may fail than before."
    )
    latency_factor: float = Field(
        default=1.5,
        ge=1,
        description="So many times as long the 95th and the 99th percentile may be as before.",
    )
    watch_seconds: Positive = Field(
        default=600,
        description="For so long a version that has begun to serve is compared with the one before; a canary always.",
    )
    probe: str | None = Field(
        default=None,
        description="A file of questions whose answers are known, which a new version is asked before anybody else "
        "asks it; `null`: none.",
    )
    probe_margin: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="So much smaller a share of the probe's answers may be as expected.",
    )


class ScaleConfig(Section):
    """When workers are added and sent away, between the bounds of `--processes N:M`."""

    waiting: float = Field(
        default=1.0, gt=0, description="More texts than so many wait for each worker: another one is started."
    )
    latency_seconds: float | None = Field(
        default=None,
        gt=0,
        description="The same where the 95th percentile of requests begins to be answered later; `null`: only by what "
        "waits.",
    )
    up_seconds: Positive = Field(
        default=5, description="For so long it has to be so before a worker is added."
    )
    down_seconds: Positive = Field(
        default=120, description="For so long one worker fewer has to be enough before one is sent away."
    )


class ServiceConfig(Section):
    """What `tutti serve` goes by."""

    keys: str | None = Field(
        default=None,
        description="File that `tutti keys` looks after; `null`: the key in TUTTI_API_KEY, or one for this time.",
    )
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    redact: RedactConfig = Field(default_factory=RedactConfig)
    filter: FilterConfig = Field(default_factory=FilterConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    alerts: ServiceAlertsConfig = Field(default_factory=ServiceAlertsConfig)
    release: ReleaseConfig = Field(default_factory=ReleaseConfig)
    scale: ScaleConfig = Field(default_factory=ScaleConfig)
