"""`tutti serve` as a process, with workers of its own, for tests that break it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

#: A label and its chance.
Said = tuple[str, float]
KEY = "sk-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}


class Gateway:
    """`said`: every line of it."""

    def __init__(self, place: Path | str, *words: str) -> None:
        surroundings = os.environ | {"TUTTI_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tutti", "serve", str(place), "--port", "0", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=surroundings,
        )  # fmt: skip
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = self.until(lambda: next(filter(None, map(_address, self.said)), None), 280)
        self.address = str(found)
        self.http = httpx.Client(base_url=self.address, headers=HEADERS, timeout=200)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def until(self, what: Callable[[], Any], seconds: float = 200) -> Any:
        """What `what` gives, as soon as that is anything."""
        end = time.monotonic() + seconds
        while not (found := what()):
            story = "\n".join(self.said)
            assert self.process.poll() is None, f"it has ended:\n{story}"
            assert time.monotonic() < end, f"it has not come to that:\n{story}"
            time.sleep(0.05)
        return found

    def until_said(self, words: str, seconds: float = 200) -> str:
        """The first line with `words` in it."""
        found = self.until(lambda: next((line for line in self.said if words in line), None), seconds)
        return str(found)

    @property
    def workers(self) -> list[int]:
        """Processes that compute."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric now."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.http.close()
        return self.process.wait(100)


@contextmanager
def gateway(place: Path, *words: str) -> Iterator[Gateway]:
    """One that serves `place`."""
    made = Gateway(place, *words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def _address(line: str) -> str | None:
    found = re.match(r"serving .* at (http://\S+)/v1;", line)
    return None if found is None else found[1]


def said_in(answer: httpx.Response) -> Said:
    """What a classifier said."""
    (one,) = answer.json()["data"]
    return one["label"], one["scores"][one["label"]]


class Load:
    """Requests that come all the time, from several threads, until it is left. `answers`: (id, status, version, (text,
    what was said))."""

    def __init__(self, address: str, bodies: list[dict[str, Any]], threads: int = 4) -> None:
        self.answers: list[tuple[str, int, str, Any]] = []
        self.problems: list[str] = []
        self._over = threading.Event()
        self._own = uuid.uuid4().hex[:8]  # several look into one audit log
        self._threads = [
            threading.Thread(target=self._ask, args=(address, bodies, number)) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, address: str, bodies: list[dict[str, Any]], number: int) -> None:
        with httpx.Client(base_url=address, headers=HEADERS, timeout=200) as http:
            count = 0
            while not self._over.is_set():
                name, body = f"load-{self._own}-{number}-{count}", bodies[count % len(bodies)]
                count += 1
                try:
                    answer = http.post("/v1/classify", json=body, headers={"x-request-id": name})
                except httpx.HTTPError as error:
                    self.problems.append(f"{name}: {error!r}")
                    time.sleep(0.05)
                    continue
                said = said_in(answer) if answer.status_code == 200 else answer.text
                version = answer.headers.get("x-tutti-version", "")
                self.answers.append((name, answer.status_code, version, (body["input"], said)))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(90)
