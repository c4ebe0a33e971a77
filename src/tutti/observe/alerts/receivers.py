"""Where alerts go: a webhook, a mailbox, a command. Each has so long to take one, and what it does not take is said."""

from __future__ import annotations

import json
import os
import shlex
import smtplib
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from email.message import EmailMessage
from typing import Any, Protocol

from tutti.core.errors import ConfigError
from tutti.observe import words
from tutti.observe.alerts.findings import Alert

_TIMEOUT_SECONDS = 10.0


class Receiver(Protocol):
    """Somebody who wants to know."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    def send(self, alert: Alert) -> None:
        """Raises OSError, in words, where it cannot be delivered."""
        ...


@dataclass(frozen=True)
class Webhook:
    """An address that takes JSON by POST; `text` in it is what chats show."""

    url: str = field(repr=False)  # it may hold a secret
    name: str = "webhook"

    def send(self, alert: Alert) -> None:
        body = json.dumps({"text": alert.line, "alert": asdict(alert)}, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "tutti"}
        try:
            request = urllib.request.Request(self.url, body, headers)
        except ValueError:  # which would tell the address, and with it a secret
            raise OSError("the webhook's address is none: it has to begin with https:// or http://") from None
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
                answer.read(1000)
        except urllib.error.HTTPError as error:
            raise OSError(f"the webhook answered {error.code}") from error
        except (OSError, ValueError) as error:
            raise OSError(f"the webhook cannot be reached: {getattr(error, 'reason', error)}") from error


@dataclass(frozen=True)
class Mail:
    """A server of outgoing mail. `tls`: `starttls`, `tls`, or `none`."""

    server: str
    to: tuple[str, ...]
    sender: str
    tls: str
    user: str | None
    password: str | None = field(repr=False)
    name: str = "e-mail"

    def send(self, alert: Alert) -> None:
        message = EmailMessage()
        message["Subject"] = " ".join(f"[tutti] {alert.line}".split())[:200]
        message["From"], message["To"] = self.sender, ", ".join(self.to)
        begun = words.date(alert.since)
        message.set_content(f"{alert.line}\n\nrule: {alert.rule}\nsince: {begun}\n")
        host, _, port = self.server.rpartition(":")
        try:
            context = ssl.create_default_context()
            secure = self.tls == "tls"
            with (
                smtplib.SMTP_SSL(host, int(port), timeout=_TIMEOUT_SECONDS, context=context)
                if secure
                else smtplib.SMTP(host, int(port), timeout=_TIMEOUT_SECONDS)
            ) as server:
                if self.tls == "starttls":
                    server.starttls(context=context)
                if self.user is not None:
                    server.login(self.user, self.password or "")
                server.send_message(message)
        except ValueError as error:
            raise OSError(f"{self.server} is no address of a mail server: write HOST:PORT") from error
        except smtplib.SMTPException as error:
            raise OSError(f"the mail server {self.server} refused it: {error}") from error
        except OSError as error:
            raise OSError(f"the mail server {self.server} cannot be reached: {error}") from error


@dataclass(frozen=True)
class Command:
    """A program, which finds the alert as JSON on its standard input and in words in `TUTTI_ALERT`."""

    command: str
    name: str = "command"

    def send(self, alert: Alert) -> None:
        surroundings = {
            "TUTTI_ALERT": alert.line,
            "TUTTI_ALERT_STATE": alert.state,
            "TUTTI_ALERT_RULE": alert.rule,
        }
        try:
            done = subprocess.run(
                shlex.split(self.command),
                input=json.dumps(asdict(alert), ensure_ascii=False),
                env=os.environ | surroundings,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_SECONDS,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"`{self.command}` took longer than {_TIMEOUT_SECONDS:.0f} s") from error
        except OSError as error:
            raise OSError(f"`{self.command}` cannot be run: {error.strerror or error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise OSError(
                f"`{self.command}` ended with {done.returncode}{': ' + said[-1][:200] if said else ''}"
            )


def receivers_of(section: Mapping[str, Any]) -> list[Receiver]:
    """Those of a section `alerts`. Text that begins with `$` names a variable of the environment.

    Raises:
        ConfigError: such a variable is not there.
    """
    found: list[Receiver] = []
    if section.get("webhook"):
        found.append(Webhook(_value(section["webhook"])))
    if section.get("email_to"):
        to, server = tuple(section["email_to"]), str(section["smtp"])
        server = server if ":" in server else f"{server}:{465 if section['smtp_tls'] == 'tls' else 587}"
        user, password = section.get("smtp_user"), section.get("smtp_password")
        found.append(
            Mail(
                server,
                to,
                sender=section.get("email_from") or user or to[0],
                tls=section["smtp_tls"],
                user=user,
                password=None if password is None else _value(password),
            )
        )
    if section.get("command"):
        found.append(Command(section["command"]))
    return found


def _value(text: str) -> str:
    if not text.startswith("$"):
        return text
    found = os.environ.get(text[1:])
    if not found:
        raise ConfigError(f"alerts name the variable {text}, which is not set", f"export {text[1:]}=…")
    return found
