"""A service that does badly on purpose, and a receiver that is really there."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from served_models import Script, scripted_service, served
from tutti.config.alerts import ServiceAlertsConfig
from tutti.serve import alerts as alerts_module
from tutti.serve.alerts import told_of
from tutti.serve.guard.layers import Guard
from tutti.serve.http import make_app

KEY = "sk-test"


def until(condition: Callable[[], Any]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_somebody_is_told_of_slowness_a_queue_and_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts_module, "_EVERY_SECONDS", 0.05)
    out, script = tmp_path / "told.jsonl", tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read() + '\\n')")
    rules = ServiceAlertsConfig(
        command=f"{sys.executable} {script}", error_rate=0.2, p99_seconds=0.001, queue=5, window_minutes=1
    )

    def told() -> dict[str, str]:
        lines = out.read_text().splitlines() if out.exists() else []
        return {alert["key"]: alert["said"] for alert in map(json.loads, lines)}

    service, guard = scripted_service(["a", "b"]), Guard(KEY)
    engine: Any = service.engine
    assert isinstance(engine, Script)
    engine.problem = None  # of a real one; this one cannot wedge
    app = make_app(service, guard)
    with served(app) as address, told_of("tiny", guard, rules, pytest.fail):
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"})
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 2}
        for _ in range(25):
            assert client.post("/v1/completions", json=asked).status_code == 200
        until(lambda: "p99" in told())
        assert "took longer than" in told()["p99"] and "error_rate" not in told() and "queue" not in told()
        engine.load = (2, 40)
        until(lambda: "queue" in told())
        engine.submit = None  # a defect
        for _ in range(25):
            assert client.post("/v1/completions", json=asked).status_code == 500
        until(lambda: "error_rate" in told())
    states = [json.loads(line)["state"] for line in out.read_text().splitlines()]
    assert states == ["firing"] * 3  # each of them once
