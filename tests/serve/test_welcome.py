"""What somebody who has started a service is told."""

from __future__ import annotations

import socket

import pytest

from tutti.config import ServiceConfig
from tutti.serve.welcome import Welcome
from tutti.web.door import Door


@pytest.mark.parametrize("given", [None, "", "sk-of-mine"])
def test_a_key_that_was_made_is_told_and_one_that_was_given_is_not(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUTTI_API_KEY", raising=False)
    if given is not None:
        monkeypatch.setenv("TUTTI_API_KEY", given)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        welcome = Welcome.at(Door("127.0.0.1", 0), listener, ServiceConfig())
    told = "\n".join(welcome.lines("tiny", "/v1/completions", ""))
    assert welcome.key and (welcome.key in told) == (given != "sk-of-mine")
    assert ("$TUTTI_API_KEY" in told) == (given == "sk-of-mine")
