"""Receivers that are really there: an HTTP server, a mail server, a program; and ones that are dead, or slow."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.observe.synthetic import START, Recorder
from tutti.config import AlertsConfig
from tutti.core.errors import ConfigError
from tutti.observe.alerts import Alert, RunRules, Sender, Watch, WatchedRun, receivers_of, send_trial
from tutti.observe.alerts import receivers as receivers_module

Web = tuple[str, list[dict[str, Any]]]
ALERT = Alert("demo", "queue", "queue", "firing", "9 requests wait – für immer", START, START + 5)


def section(**keys: Any) -> dict[str, Any]:
    return AlertsConfig(**keys).model_dump()


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server that answers /fail with 500; what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append({"path": self.path, "type": self.headers["Content-Type"]} | json.loads(body))
            self.send_response(500 if self.path == "/fail" else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", got
    server.shutdown()
    server.server_close()


class Mailbox:
    def __init__(self) -> None:
        self.got: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"


@pytest.fixture
def mail() -> Iterator[tuple[str, Mailbox]]:
    """A mail server that wants a password."""

    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"me", b"s3cret")
        return AuthResult(success=right, handled=right)  # else the server itself says 535

    box = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(
        box, hostname="127.0.0.1", port=port, authenticator=check, auth_required=True, auth_require_tls=False
    )
    controller.start()
    yield f"127.0.0.1:{port}", box
    controller.stop()


def test_a_webhook_gets_json_that_chats_show(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    url, got = web
    monkeypatch.setenv("HOOK", f"{url}/secret")
    (hook,) = receivers_of(section(webhook="$HOOK"))
    assert "secret" not in repr(hook)
    hook.send(ALERT)
    assert got[0]["path"] == "/secret" and got[0]["type"] == "application/json"
    assert got[0]["text"] == "demo: 9 requests wait – für immer"
    assert got[0]["alert"]["state"] == "firing" and got[0]["alert"]["since"] == START
    (failing,) = receivers_of(section(webhook=f"{url}/fail"))
    with pytest.raises(OSError, match="answered 500"):
        failing.send(ALERT)
    monkeypatch.delenv("HOOK")
    with pytest.raises(ConfigError, match=r"\$HOOK, which is not set"):
        receivers_of(section(webhook="$HOOK"))


def test_mail_arrives(mail: tuple[str, Mailbox], monkeypatch: pytest.MonkeyPatch) -> None:
    server, box = mail
    to = {"email_to": ["a@example.org", "b@example.org"], "smtp": server, "smtp_tls": "none"}
    monkeypatch.setenv("SMTP_PASSWORD", "s3cret")
    login = {"smtp_user": "me", "smtp_password": "$SMTP_PASSWORD"}
    (receiver,) = receivers_of(section(**to, **login, email_from="me@example.org"))
    assert "s3cret" not in repr(receiver)
    receiver.send(ALERT)
    ((recipients, message),) = box.got
    assert recipients == to["email_to"] and message["From"] == "me@example.org"
    assert message["Subject"] == "[tutti] demo: 9 requests wait – für immer"
    assert "rule: queue" in message.get_content()
    monkeypatch.setenv("SMTP_PASSWORD", "wrong")
    (wrong,) = receivers_of(section(**to, **login))
    with pytest.raises(OSError, match="refused it"):
        wrong.send(ALERT)
    (open_,) = receivers_of(section(**(to | {"smtp_tls": "starttls"})))
    with pytest.raises(OSError, match="refused it"):  # never in the clear where it was to be hidden
        open_.send(ALERT)
    assert len(box.got) == 1


def test_a_command_is_given_the_alert(tmp_path: Path) -> None:
    out = tmp_path / "out file"
    script = tmp_path / "tell.py"
    script.write_text(
        "import json, os, sys\n"
        "open(sys.argv[1], 'w').write(os.environ['TUTTI_ALERT'] + '|' + json.load(sys.stdin)['key'])\n"
    )
    (command,) = receivers_of(section(command=f"{sys.executable} {script} '{out}'"))
    command.send(ALERT)
    assert out.read_text() == "demo: 9 requests wait – für immer|queue"
    (failing,) = receivers_of(section(command=f"{sys.executable} -c 'raise SystemExit(\"no phone\")'"))
    with pytest.raises(OSError, match="ended with 1: no phone"):
        failing.send(ALERT)
    (missing,) = receivers_of(section(command="/no/such/program"))
    with pytest.raises(OSError, match="cannot be run"):
        missing.send(ALERT)


def test_whatever_an_error_says_arrives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = "the run failed: ValueError: row\0 1\nis\u2028" + 200_000 * "x"
    (command,) = receivers_of(section(command=f"sh -c 'printenv TUTTI_ALERT > {out}; cat >> {out}'"))
    command.send(replace(ALERT, said=said))
    line, content = out.read_text().split("\n", 1)
    assert line.startswith("demo: the run failed: ValueError: row 1 is xxx") and len(line) == 1000
    assert json.loads(content)["said"] == said


def test_what_is_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers_module, "_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        port = silent.getsockname()[1]
        mail = {"email_to": ["a@b.c"], "smtp": f"127.0.0.1:{port}"}
        found = receivers_of(section(webhook=f"http://127.0.0.1:{port}", command="sleep 60", **mail))
        results = send_trial(found, "demo")
    assert set(results) == {"webhook", "e-mail", "command"} and all(results.values())


def test_a_dead_receiver_costs_the_others_nothing_and_is_named_once(
    web: Web,
) -> None:
    url, got = web
    dead, alive = (
        receivers_of(section(webhook="http://127.0.0.1:9"))[0],
        receivers_of(section(webhook=url))[0],
    )
    warned: list[str] = []
    sender = Sender([dead, alive], warned.append, again_seconds=(0.01,))
    began = time.monotonic()
    for _ in range(3):
        sender.send(ALERT)
    assert time.monotonic() - began < 0.1  # nobody waits
    sender.stop()
    assert len(got) == 3 and sender.lost == 3
    assert len(warned) == 1 and "cannot be reached" in warned[0]


def test_a_slow_receiver_keeps_no_other_waiting(web: Web) -> None:
    url, got = web
    alive, free, lost = receivers_of(section(webhook=url))[0], threading.Event(), list[str]()

    class Slow:
        name = "slow"

        def send(self, alert: Alert) -> None:
            free.wait(60)

    sender = Sender([Slow(), alive], lost.append)
    for _ in range(3):
        sender.send(ALERT)
    until(lambda: len(got) == 3)  # while the first still waits
    free.set()
    sender.stop()
    assert sender.lost == 0 and not lost


def test_from_the_events_of_a_run_to_the_receiver(tmp_path: Path, web: Web) -> None:
    url, got = web
    r = Recorder(tmp_path / "demo")
    r.at(0, "launched", -1, resume=False)
    r.started(0)
    r.steps(0, range(1, 4))

    def watch() -> Watch:
        sender = Sender(receivers_of(section(webhook=url)), pytest.fail)
        return Watch([WatchedRun(r.run, RunRules(), 600.0)], sender, pytest.fail, every_seconds=0.02)

    first, second = watch().start(), watch().start()  # the launcher's, and one that waits for it to die
    until(lambda: got)
    first.stop()
    r.at(100, "launched", -1, resume=True)
    r.at(101, "error", 0, step=3, type="TrainingError", message="the loss is not a number")
    until(lambda: len(got) > 2)
    second.stop()
    said = [(one["alert"]["rule"], one["alert"]["state"]) for one in got]
    assert said[0] == ("ended", "firing") and sorted(said[1:]) == [
        ("bad_numbers", "firing"),
        ("ended", "firing"),
    ]
    assert "without a word" in got[0]["text"]


def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")
