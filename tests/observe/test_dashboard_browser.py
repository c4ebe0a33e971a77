"""The pages in a real browser: what they show is what the files say; they survive a reload and a restart; and axe,
which knows the Web Content Accessibility Guidelines, finds nothing."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tests.observe.browser import Dashboard, browser
from tests.observe.synthetic import Recorder, lively_run

pytest.importorskip("axe_playwright_python")


class Now(Recorder):
    """Events of a run that goes on at this moment."""

    def __init__(self, run: Path, config: str = "name: live\n") -> None:
        super().__init__(run, config)
        self.begun = time.time()

    def at(self, seconds: float, kind: str, rank: int = 0, /, **fields: Any) -> None:
        event = {"time": self.begun + seconds, "kind": kind, "rank": rank, "replica": rank} | fields
        with (self.run / f"events/rank-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """What Prometheus's client shows of a service that is asked all the time."""
    registry = CollectorRegistry()
    requests = Counter("tutti_requests", "", ["route", "method", "status"], registry=registry)
    seconds = Histogram("tutti_request_seconds", "", ["route"], registry=registry)
    first = Histogram("tutti_first_piece_seconds", "", ["route"], registry=registry)
    hidden = Counter("tutti_redactions", "", ["kind"], registry=registry)
    Gauge("tutti_queue_length", "", registry=registry).set(3)
    Gauge("tutti_slots_in_use", "", registry=registry).set(8)
    Gauge("tutti_engine_up", "", registry=registry).set(1)
    for name, of in {"version_share": (0.9, 0.1), "workers": (2, 1), "workers_wanted": (2, 2)}.items():
        gauge = Gauge(f"tutti_{name}", "", ["version"], registry=registry)
        for version, value in zip(("3", "4"), of, strict=True):
            gauge.labels(version).set(value)
    Counter("tutti_version_requests", "", ["version", "status"], registry=registry).labels("3", "200").inc(7)
    Counter("tutti_rollbacks", "", registry=registry).inc(2)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for _ in range(40):
                requests.labels("/v1/completions", "POST", "200").inc()
                seconds.labels("/v1/completions").observe(0.3)
                first.labels("/v1/completions").observe(0.04)
            requests.labels("/v1/completions", "POST", "500").inc(10)
            hidden.labels("EMAIL_ADDRESS").inc()
            models = json.dumps({"data": [{"id": "demo"}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(models if self.path == "/v1/models" else generate_latest(registry))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    lively_run(place / "lively")
    dead = Recorder(place / "dead", "name: dead\n")
    dead.started(0)
    dead.steps(1, range(1, 40))
    failed = Recorder(place / "failed", "name: failed\n")
    failed.at(0, "launched", -1, resume=False)
    failed.started(0.1)
    failed.at(1, "error", 1, step=3, type="ValueError", message="no such thing", hint="look there")
    Recorder(place / "empty", "name: empty\n")
    return place


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def dashboard(place: Path, service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = Dashboard(str(place), "--service", service)
        found.start()
        yield found
        found.end()  # pages that are open hold nobody up


def violations(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['any']}" for one in found]


@pytest.mark.parametrize(("colours", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing(
    chromium: Any, dashboard: Dashboard, service: str, colours: str, width: int
) -> None:
    name = service.removeprefix("http://")
    pages = {
        "/": "text=lively",
        "/run?name=lively": "#parts svg path",
        "/run?name=dead": "text=It does not go on",
        "/run?name=failed": "text=It failed",
        "/run?name=empty": "text=not begun",
        "/run?name=nobody": "text=There is no run nobody",
        f"/service?name={name}": "text=Requests by route",
    }
    page = chromium.new_page(viewport={"width": width, "height": 844}, color_scheme=colours)
    broken: list[str] = []
    page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: broken.append(str(error)))
    for path, shown in pages.items():
        page.goto(dashboard.url + path)
        page.wait_for_selector(shown, state="attached")
        for details in page.locator("details:visible summary").all():
            details.click()
        assert violations(page) == [], path
        root = "document.documentElement"
        assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), path
    assert broken == []
    page.close()


def test_nothing_to_show_says_what_to_do(chromium: Any, tmp_path: Path) -> None:
    dashboard = Dashboard(str(tmp_path))
    dashboard.start()
    page = chromium.new_page()
    page.goto(dashboard.url)
    page.wait_for_selector("text=No runs yet")
    assert "tutti train" in page.inner_text("main") and violations(page) == []
    Recorder(tmp_path / "new", "name: new\n").started(0)
    page.wait_for_selector("a:text-is('new')")  # it shows up by itself
    page.close()
    dashboard.end()


def test_charts_are_read_by_keys_and_as_tables(chromium: Any, dashboard: Dashboard) -> None:
    page = chromium.new_page()
    page.goto(f"{dashboard.url}/run?name=lively")
    page.wait_for_selector("#speed svg path", state="attached")
    chart = page.locator("#speed [role=slider]")
    chart.focus()
    page.keyboard.press("Home")
    # 8192 tokens in 0.35 s.
    assert chart.get_attribute("aria-valuetext") == "step 1: Tokens per second 23,406"
    page.keyboard.press("End")
    assert chart.get_attribute("aria-valuetext").startswith("step 1,000: ")
    page.keyboard.press("ArrowLeft")
    assert chart.get_attribute("aria-valuetext").startswith("step 999: ")
    assert page.locator("#speed .tip").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#speed .tip").is_visible()
    page.click("#speed summary")
    page.wait_for_selector("#speed tbody tr")
    rows = page.locator("#speed tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["1,000", "23,406"] and 20 < len(rows) <= 40
    page.close()


def test_live_through_reload_and_restart(chromium: Any, tmp_path: Path) -> None:
    r = Now(tmp_path / "live")
    r.started(0)
    r.steps(0, range(1, 11), seconds=0.01)
    dashboard = Dashboard(str(tmp_path))
    dashboard.start()
    page = chromium.new_page()
    page.goto(f"{dashboard.url}/run?name=live")
    page.wait_for_selector("text=10 of 100")
    assert page.inner_text(".title .pill") == "running"
    r.steps(0.2, range(11, 21), seconds=0.01)
    page.wait_for_selector("text=20 of 100")
    page.reload()
    page.wait_for_selector("text=20 of 100")
    dashboard.kill()
    page.wait_for_selector("text=no connection")
    r.steps(0.4, range(21, 31), seconds=0.01)
    dashboard.start()
    page.wait_for_selector("text=30 of 100")
    page.wait_for_selector("#link.on")
    page.click("#loss summary")
    page.wait_for_selector("#loss tbody tr")
    steps = [row.split("\t")[0] for row in page.locator("#loss tbody tr").all_inner_texts()]
    assert steps == [str(step) for step in range(30, 0, -1)]  # none is lost
    r.at(1, "restart", -1, attempt=1, reason="rank 1 was killed")
    r.started(1.1, attempt=1, resumed_from=5)
    r.steps(1.2, [6], seconds=0.01)
    page.wait_for_selector("text=6 of 100")
    page.wait_for_function("document.querySelectorAll('#loss tbody tr').length === 6")
    page.close()
    dashboard.end()


def test_a_service_live(chromium: Any, dashboard: Dashboard, service: str) -> None:
    page = chromium.new_page()
    page.goto(f"{dashboard.url}/service?name={service.removeprefix('http://')}")
    page.wait_for_selector("text=serves demo")
    page.wait_for_selector("#requests svg path", state="attached")
    assert page.locator("dt:text-is('Waiting') + dd").inner_text() == "3"
    assert page.locator("text=EMAIL_ADDRESS").count() == 1
    assert page.locator("#versions tbody tr").all_inner_texts() == [
        "4\t10.0 %\t1 of 2\t0\t0\t0",
        "3\t90.0 %\t2 of 2\t0\t7\t0",
    ]
    assert page.locator("text=2 rolled back by themselves").count() == 1
    page.wait_for_selector("section:has(#alerts-title) >> text=20.0 % of")  # 10 of 50 requests fail
    page.close()
