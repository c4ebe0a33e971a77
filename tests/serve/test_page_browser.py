"""The page to try a model with, in a real browser: by keyboard alone, and axe finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_tasks import KEY, open_task, write_task

from served_models import served, tiny_service
from tests.observe.browser import browser
from tutti.serve.http import make_app
from tutti.serve.page import PAGE, with_page

pytest.importorskip("axe_playwright_python")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where services of several kinds are."""
    folder: Path = tmp_path_factory.mktemp("tried")
    classifier, tagger = (open_task(write_task(folder / kind, kind)) for kind in ("classify", "tag"))
    writer = tiny_service()
    with (
        served(with_page(make_app(classifier, KEY))) as one,
        served(with_page(make_app(tagger, KEY))) as two,
        served(with_page(make_app(writer, KEY))) as three,
    ):
        yield {"classify": one, "tag": two, "write": three}
    for service in (classifier, tagger, writer):
        service.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(params=["light", "dark"])
def tab(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = chromium.new_context(color_scheme=request.param, viewport={"width": 390, "height": 800})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    assert said == []
    context.close()


def require_accessible(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_text_is_classified_and_explained_by_keyboard(tab: Any, places: dict[str, str]) -> None:
    tab.goto(places["classify"] + PAGE)
    require_accessible(tab)
    tab.keyboard.type(KEY)  # the field has the focus
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#text")
    tab.keyboard.type("why is my card lost")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#said table")
    assert {"exchange", "late", "lost"} == set(tab.locator("#said tbody th").all_inner_texts())
    require_accessible(tab)
    tab.get_by_role("button", name="Why?").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#said h2")
    words = {"why", "is", "my", "card", "lost"}
    assert words == set(tab.locator("#said tbody th").all_inner_texts())
    require_accessible(tab)


def test_entities_stand_in_their_text(tab: Any, places: dict[str, str]) -> None:
    text = "anna visits 𝔫ew york and <b>bob</b>"
    tab.goto(f"{places['tag']}{PAGE}#{KEY}")
    tab.wait_for_selector("#text")
    assert KEY not in tab.url
    tab.fill("#text", text)
    tab.get_by_role("button", name="Find").click()
    tab.wait_for_selector("#said p.text")
    shown = tab.evaluate(
        "[...document.querySelectorAll('#said p.text')].map((p) => { const q = p.cloneNode(true);"
        " q.querySelectorAll('sup').forEach((s) => s.remove()); return q.textContent; })[0]"
    )
    assert shown == text
    require_accessible(tab)


def test_a_stream_is_written_and_a_wrong_key_is_said(tab: Any, places: dict[str, str]) -> None:
    tab.goto(f"{places['write']}{PAGE}#{KEY}")
    tab.wait_for_selector("#text")
    tab.fill("#text", "The house")
    tab.fill("#most", "12")
    tab.get_by_role("button", name="Write").click()
    tab.wait_for_selector("#raw:not([hidden])")
    assert tab.locator(".turn").first.inner_text() == "The house"
    assert tab.locator(".turn.model").first.inner_text()
    require_accessible(tab)


def test_a_wrong_key_is_said(chromium: Any, places: dict[str, str]) -> None:
    page = chromium.new_page()
    page.goto(f"{places['write']}{PAGE}#sk-wrong")
    page.wait_for_function("document.getElementById('trouble').textContent !== ''")
    assert "key" in page.inner_text("#trouble")
    page.close()
