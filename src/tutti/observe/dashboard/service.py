"""A service as its metrics show it: asked every few seconds, remembered for half a day, in a file too."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tutti.core.errors import ConfigError
from tutti.observe.alerts.service_rules import ServiceRules, judge_service
from tutti.observe.dashboard.rows import columns_of
from tutti.observe.metrics import Sample, between, parse_sample


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A service has one address: its key goes nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
_EVERY_SECONDS = 5.0
_TIMEOUT_SECONDS = 4.0
_MOST_BYTES = 4_000_000
#: All samples of so long, then one a minute.
_CLOSE_SECONDS, _FAR_SECONDS = 3600.0, 12 * 3600.0
_FILE_BYTES = 8_000_000
#: What is an alert on the page, whose own state says whether it answers at all. The service's settings say what
#: somebody is told of; they are not among its metrics.
_RULES = ServiceRules(down=False, error_rate=0.05)


class ServicePage:
    """Of the service at `url`. `key`: with which it is asked; `directory`: where what it said is kept."""

    def __init__(
        self,
        url: str,
        key: str | None,
        directory: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"{url!r} is no address of a service", "give one such as http://127.0.0.1:8000")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/metrics').removesuffix('/v1')}"
        self.name = parts.netloc
        self._key, self._clock, self._since = key, clock, clock()
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._file = None if directory is None else directory / f"service-{digest}.jsonl"
        self._samples: list[tuple[int, Sample]] = []  # each with its number
        self._number = 0
        self._models: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"metrics of {self.name}", daemon=True)
        self._remember()

    def start(self) -> ServicePage:
        """Ask in the background until `stop`."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End that."""
        self._stop.set()

    def poll(self) -> Sample:
        """Ask once."""
        try:
            sample = parse_sample(self._get("/metrics"), self._clock())
        except (OSError, ValueError, HTTPException) as error:
            sample = Sample(self._clock(), problem=_problem(error))
        if not sample.problem and (self._number % 12 == 0 or not self._models):
            # A key may not open it.
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, HTTPException):
                found = json.loads(self._get("/v1/models"))["data"]
                self._models = [str(model["id"]) for model in found]
        with self._lock:
            self._add(sample)
        self._write(sample)
        return sample

    def look(self, revision: int) -> tuple[dict[str, Any], int]:
        """As a page of a run: all parts, with rows of what happened after number `revision`."""
        with self._lock:
            samples, number = list(self._samples), self._number
            parts: dict[str, Any] = {"service": self._now()}
        found = judge_service([sample for _, sample in samples], _RULES)
        parts["alerts"] = [{"rule": one.rule, "said": one.said} for one in found]
        first = next((i for i, (of, _) in enumerate(samples) if of > revision), len(samples))
        pairs = zip(samples[max(0, first - 1) :], samples[max(1, first) :], strict=False)
        rows = [between(a, b) for (_, a), (_, b) in pairs]
        if rows:
            parts["rows"] = {"from": None if revision > 0 else 0, "width": 1, "columns": columns_of(rows)}
        return parts, number

    def summary(self) -> dict[str, Any]:
        """For the page of all."""
        with self._lock:
            return self._now()

    def recent(self) -> list[Sample]:
        """What it said since this was made, oldest first."""
        with self._lock:
            return [sample for _, sample in self._samples if sample.time >= self._since]

    def _now(self) -> dict[str, Any]:
        last = self._samples[-1][1] if self._samples else None
        reached = [sample for _, sample in self._samples if not sample.problem]
        newest = reached[-1] if reached else None
        state = "unknown"
        if last is not None:
            state = "unreachable" if last.problem else "down" if last.up == 0 else "up"
        row: dict[str, float] = {}
        if last is not None and newest is not None:
            minute = [s for s in reached if s.time >= last.time - 60]
            row = between(minute[0], newest) if len(minute) > 1 else {}
        return {
            "name": self.name,
            "url": self.url,
            "state": state,
            "problem": last.problem if last else "",
            "models": self._models,
            "last_reached": newest.time if newest else None,
            "last_minute": {name: values[0] for name, values in columns_of([row]).items()},
            "requests": newest.requests if newest else {},
            "redactions": newest.redactions if newest else {},
            "withheld": newest.withheld if newest else 0.0,
            "tokens": newest.tokens if newest else {},
            "versions": newest.versions if newest else {},
            "rolled_back": newest.rolled_back if newest else 0.0,
        }

    def _get(self, path: str) -> str:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self.url + path, headers=headers)
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            body: bytes = answer.read(_MOST_BYTES)
        return body.decode("utf-8", "replace")

    def _add(self, sample: Sample) -> None:
        self._number += 1
        self._samples.append((self._number, sample))
        close, far = sample.time - _CLOSE_SECONDS, sample.time - _FAR_SECONDS
        kept: list[tuple[int, Sample]] = []
        for number, one in self._samples:
            far_off = kept and one.time < close and one.time - kept[-1][1].time < 60
            if one.time >= far and not far_off:
                kept.append((number, one))
        self._samples = kept

    def _remember(self) -> None:
        """What an earlier dashboard was told."""
        if self._file is None or not self._file.is_file():
            return
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # torn, or of another version
                sample = Sample(**json.loads(line))
                if sample.time >= self._clock() - _FAR_SECONDS:
                    self._samples.append((self._number + 1, sample))
                    self._number += 1
        if self._samples:
            _, last = self._samples.pop()
            self._number -= 1
            self._add(last)

    def _write(self, sample: Sample) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # a full disk costs the memory of this, and nothing else
            self._file.parent.mkdir(parents=True, exist_ok=True)
            full = self._file.is_file() and self._file.stat().st_size > _FILE_BYTES
            lines = [one for _, one in self._samples] if full else [sample]
            with self._file.open("w" if full else "a", encoding="utf-8") as file:
                file.writelines(one.as_line() + "\n" for one in lines)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(_EVERY_SECONDS)


def _problem(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            return f"it answers {error.code}: the key does not open /metrics; name one with --key-env"
        return f"it answers {error.code}"
    reason = getattr(error, "reason", None) or error
    return f"it cannot be reached: {getattr(reason, 'strerror', None) or reason}"
