"""Schemathesis asks whatever the service's own description allows, and what it does not, with a key and without."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from served_models import scripted_service, served
from tutti.config import ServiceConfig
from tutti.serve.guard.layers import Guard
from tutti.serve.guard.scopes import OPEN
from tutti.serve.http import make_app

KEY = "sk-of-the-test"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("examples", [5, pytest.param(150, marks=pytest.mark.slow)])
def test_nothing_that_can_be_asked_breaks_it(examples: int) -> None:
    guard = Guard(
        KEY, ServiceConfig.model_validate({"redact": {"outputs": True}, "filter": {"outputs": True}})
    )
    with served(make_app(scripted_service(["a@b.org ", "is it."]), guard)) as address:
        schema: Any = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=AUTHORIZED)
        routes = set()
        for found in schema.get_all_operations():
            operation = found.ok()
            routes.add(operation.path)
            for mode in schemathesis.GenerationMode:
                ask(operation.as_strategy(generation_mode=mode), operation.path, examples)
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models/{name}", "/health"} <= routes


def ask(strategy: Any, path: str, examples: int) -> None:
    @given(case=strategy)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def both_ways(case: Any) -> None:
        known = case.call(headers=AUTHORIZED, timeout=60)
        assert known.status_code < 500, (known.status_code, case.as_curl_command())
        assert "a@b.org" not in known.text
        stranger = case.call(timeout=60)
        assert stranger.status_code == 401 or path in OPEN, case.as_curl_command()

    with contextlib.suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
        both_ways()
