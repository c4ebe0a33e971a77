"""What somebody is told of, and how, while a run or a service goes on."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tutti.config.fields import Positive, Section


class ReceiversConfig(Section):
    """Where alerts go."""

    webhook: str | None = Field(
        default=None,
        description="Address that takes JSON by POST; its `text` is what chats show. `$NAME`: what the environment has "
        "under that name.",
    )
    email_to: list[str] = Field(default_factory=list, description="Addresses that get mail.")
    smtp: str | None = Field(
        default=None,
        description="Server of outgoing mail, HOST or HOST:PORT (587, or 465 with `smtp_tls: tls`); needed with "
        "`email_to`.",
    )
    smtp_tls: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="How what is sent there is kept from others."
    )
    smtp_user: str | None = Field(default=None, description="Who logs in there; `null`: nobody has to.")
    smtp_password: str | None = Field(
        default=None,
        pattern=r"^\$[A-Za-z_][A-Za-z0-9_]*$",
        description="Variable of the environment that holds the password, such as `$SMTP_PASSWORD`.",
    )
    email_from: str | None = Field(
        default=None, description="Sender; `null`: `smtp_user`, or else the first of `email_to`."
    )
    command: str | None = Field(
        default=None,
        description="A program with its arguments, which finds the alert as JSON on its standard input and in words in "
        "`TUTTI_ALERT`; no shell.",
    )
    repeat_minutes: Positive = Field(
        default=240, description="What lasts is said again after so long; what is over is said once."
    )

    @field_validator("webhook")
    @classmethod
    def _an_address(cls, webhook: str | None) -> str | None:
        if webhook is not None and not webhook.startswith(("http://", "https://", "$")):
            raise ValueError("webhook must begin with https://, http:// or $")
        return webhook

    @model_validator(mode="after")
    def _can_be_sent(self) -> ReceiversConfig:
        if self.email_to and self.smtp is None:
            raise ValueError("email_to needs smtp: the server that takes outgoing mail")
        if self.smtp is not None and not self.email_to:
            raise ValueError("smtp needs email_to: who gets the mail")
        if (self.smtp_user is None) != (self.smtp_password is None):
            raise ValueError("smtp_user and smtp_password belong together")
        try:
            empty = self.command is not None and not shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"command cannot be read: {error}") from error
        if empty:
            raise ValueError("command is empty")
        return self

    @property
    def has_receivers(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self.webhook or self.email_to or self.command)


class AlertsConfig(ReceiversConfig):
    """What somebody is told of while a run goes on. A process or thread beside the run reads its events; nothing that
    happens there holds up a step."""

    bad_numbers: bool = Field(default=True, description="A loss or a gradient is not finite.")
    explosion: Annotated[float, Field(gt=0)] | None = Field(
        default=0.5,
        description="The loss has risen by so large a share of what it had fallen, means of 20 steps, noise set aside.",
    )
    ended: bool = Field(
        default=True,
        description="The run failed, or stopped without a word; the latter only `tutti alerts watch` can tell.",
    )
    stalled: bool = Field(default=True, description="A rank hangs (`watch.stall_seconds`).")
    checkpoint_minutes: Positive | None = Field(
        default=120, description="Nothing was saved for so long, while the run goes on."
    )
    finished: bool = Field(default=False, description="The run has finished: said once.")
    plateau_steps: Positive | None = Field(
        default=None, description="The validation loss has been no better for so many steps."
    )
    slower_than: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Tokens a second over the last 20 steps are less than this share of what is usual.",
    )
    straggler: Annotated[float, Field(gt=1)] | None = Field(
        default=None,
        description="A rank works so many times as long on a step as the others, over the last 20 steps.",
    )


class ServiceAlertsConfig(ReceiversConfig):
    """What somebody is told of while a service goes on. A thread beside it looks at its metrics; no request waits for
    it."""

    down: bool = Field(
        default=True,
        description="It does not answer for half a minute; of a dead process only `tutti alerts watch` can tell.",
    )
    error_rate: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="More than this share of the requests fail (5xx), of 20 or more."
    )
    p99_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="One of 100 requests takes longer, of 20 or more."
    )
    queue: Positive | None = Field(default=None, description="More requests than that wait, on average.")
    window_minutes: Positive = Field(default=5, description="Over which requests are judged.")
