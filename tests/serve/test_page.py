"""The page to try a model with: it is there, holds nothing, and nothing else is opened by it."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from served_models import served, tiny_service
from tutti.core.errors import ConfigError
from tutti.serve import Door
from tutti.serve.http import make_app
from tutti.serve.page import with_page

KEY = "sk-of-the-test"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    service = tiny_service()
    with served(with_page(make_app(service, KEY))) as address:
        yield address
    service.close()


class Links(HTMLParser):
    """What a page fetches, and what would run in it by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched, self.inline = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        found = given.get("src") or (given.get("href") if tag == "link" else None)
        if found and not found.startswith("data:"):
            self.fetched.append(found)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "script" and "src" not in given:
            self.inline.append("script")


def test_it_is_whole_and_runs_nothing_of_others(address: str) -> None:
    page = httpx.get(f"{address}/try")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    links = Links()
    links.feed(page.text)
    assert links.fetched and not links.inline
    for link in links.fetched:
        part = httpx.get(f"{address}{link}")
        assert part.status_code == 200 and "http://" not in part.text and "https://" not in part.text
    assert KEY not in page.text


def test_it_opens_nothing_else(address: str) -> None:
    for path in ("/try/", "/try/page.py", "/try/../v1/models", "/try/%2e%2e/page.py", "/v1/models", "/"):
        assert httpx.get(f"{address}{path}").status_code == 401, path
    assert httpx.post(f"{address}/try", json={}).status_code == 401
    with_key = httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    (model,) = with_key.json()["data"]
    assert (model["kind"], model["chats"], model["documents"]) == ("writer", True, False)


def test_it_is_there_where_only_this_machine_can_come() -> None:
    assert Door().page and Door("::1").page and not Door("0.0.0.0", insecure=True).page
    assert Door("0.0.0.0", insecure=True, with_page=True).page and not Door(with_page=False).page
    with pytest.raises(ConfigError, match="in the clear"):
        Door("0.0.0.0", with_page=True).open()
