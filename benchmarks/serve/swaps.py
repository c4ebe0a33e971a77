"""What a service of releases loses while its versions come and go, what it says when twice as much is asked as it can,
and what its gateway costs.

    make bench-swaps            (or: python -m benchmarks.serve.swaps --help)

**swaps**: a client in a process of its own (`benchmarks/serve/asker.py`) asks all the time, and logs every try by its
id. A new version is deployed, --swaps times; then the service is told to end by SIGTERM and started again at the same
port, --drains times; and this goes on until --requests were asked. Then the client's log is compared with the
service's audit log, by id. A request is lost if it was not answered with 200 in the end, or if a try of it is in the
audit log and the client got no answer to that. An answer is spurious if the audit log does not have it exactly once.
While the service is down connections are refused; the client tries again, and such tries are counted.

**overload**: what the service manages, from as many connections as may wait that never pause; then requests at random
moments (Poisson), 80 % and 200 % as many a second, the latter for --minutes. Only 200 and 429 may come. Memory is
that of the gateway and its workers (resident), at the beginning and at the end.

**overhead**: one request after the other, to the gateway with one worker and to the same model in one process, in
turns.

The model is MiniLM (22M parameters) with a head for 77 labels, texts of 16 tokens; where only the way counts
(`swaps`, `overhead`) the first two of its six layers. Parts are kept one by one in --out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.common import ROOT, describe_machine, machine_line, table, write_result
from benchmarks.kept import Kept
from benchmarks.labelled import minilm
from tutti.launch.companion import free_port
from tutti.serve.release import Registry

HERE = Path(__file__).resolve().parent
PARTS = ("swaps", "overload", "overhead")
_KEY = "sk-of-the-benchmark"
_READY_SECONDS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--drains", type=int, default=20)
    parser.add_argument("--per-second", type=float, default=25.0, help="requests, in `swaps`")
    parser.add_argument("--minutes", type=float, default=5.0, help="of overload")
    parser.add_argument("--queue", type=int, default=8, help="texts that may wait, in `overload`")
    parser.add_argument("--rounds", type=int, default=5, help="of `overhead`")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # services are ended, too
    machine = describe_machine()
    kept = Kept(options.out / "swaps", machine)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in options.parts:
            told = kept.once(part, partial(_measured, part, root / part, options))
            print(part, "is there already" if told is None else json.dumps(told), flush=True)
    found = {part: one[0] for part in PARTS if (one := kept.all(part))}
    print(write_result(options.out, "swaps", {"machine": machine, **found}, _page(machine, found)))


def _measured(part: str, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    began = os.getloadavg()[0]
    found = {"swaps": swaps, "overload": overload, "overhead": overhead}[part](root, options)
    return found | {"load_average": [began, os.getloadavg()[0]]}


# Swaps and drains ------------------------------------------------------------------------------------------------


def swaps(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """See above."""
    root.mkdir()
    models = [_model(root / f"model-{number}", layers=2, seed=number) for number in range(2)]
    releases, log, audit = root / "releases", root / "client.jsonl", root / "audit.jsonl"
    registry = Registry.create(releases)
    registry.deploy(models[0], None, "")
    port, began = free_port(), time.monotonic()
    words = ["--processes", "2", f"audit.file={audit}", "audit.file_bytes=1000000000"]
    words += ["release.latency_factor=100"]  # a busy machine is no reason to roll back
    service = _Service(releases, port, words)
    asked = {
        "url": f"http://127.0.0.1:{port}/v1/classify", "key": _KEY, "bodies": _bodies(), "connections": 8,
        "per_second": options.per_second, "log": str(log),
    }  # fmt: skip
    client = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve.asker"], cwd=ROOT, stdin=subprocess.PIPE, text=True
    )
    assert client.stdin is not None
    client.stdin.write(json.dumps(asked) + "\n")
    client.stdin.flush()
    try:
        for number in range(options.swaps):
            version = registry.deploy(models[(number + 1) % 2], None, "").version
            service.until(f"version {version} serves now")
        codes = []
        for _ in range(options.drains):
            time.sleep(1.0)
            codes.append(service.end())
            service = _Service(releases, port, words)
        while sum(status is not None for _, _, status, *_ in _lines(log)) < options.requests:
            time.sleep(1.0)
    finally:
        client.stdin.close()
        client.wait(120)
        codes.append(service.end())
    found = _reconcile(_lines(log), _lines(audit))
    return found | {
        "swaps": options.swaps, "drains": options.drains, "exit_codes": sorted(set(codes)),
        "rolled_back": sum(deed.deed == "rolled_back" for deed in registry.deeds),
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def _reconcile(client: list[Any], service: list[Any]) -> dict[str, Any]:
    """Both logs, by id."""
    answered = Counter(line["id"] for line in service if line["whole"] and line["status"] is not None)
    begun = {line["id"] for line in service}
    numbers = {number for number, *_ in client}
    final = {number: status for number, _, status, *_ in client if status is not None}
    unanswered = [(name, refused) for _, name, status, _, _, refused in client if status is None]
    return {
        "requests": len(numbers),
        "answered_200": sum(status == 200 for status in final.values()),
        "lost": sum(final.get(number) != 200 for number in numbers)
        + sum(name in begun for name, _ in unanswered),
        "spurious": sum(answered[name] != 1 for _, name, status, *_ in client if status is not None),
        "refused_at_the_door": sum(refused for _, refused in unanswered),
        "closed_before_they_were_begun": sum(not refused for _, refused in unanswered),
        "versions": len({version for *_, version, _, _ in client if version}),
    }


# Overload ----------------------------------------------------------------------------------------------------


def overload(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """See above."""
    root.mkdir()
    model, port = _model(root / "intents", layers=6, seed=0), free_port()
    service = _Service(model, port, ["--processes", "1", "--queue", str(options.queue)])
    try:
        _load(port, 3.0, 16, None)
        full = _load(port, 20.0, options.queue, None)
        capacity = full["statuses"].get("200", 0) / full["seconds"]
        easy = _load(port, 60.0, 256, 0.8 * capacity)
        before = service.resident_bytes()
        hard = _load(port, 60.0 * options.minutes, 256, 2 * capacity)
        after = service.resident_bytes()
    finally:
        service.end()
    easy_p99, hard_p99 = (float(np.percentile(one["admitted"], 99)) * 1e3 for one in (easy, hard))
    return {
        "minutes": options.minutes, "queue": options.queue, "capacity_per_second": capacity,
        "statuses_at_80": easy["statuses"], "p50_ms_at_80": float(np.median(easy["admitted"])) * 1e3,
        "p99_ms_at_80": easy_p99, "statuses_at_200": hard["statuses"],
        "p50_ms_at_200": float(np.median(hard["admitted"])) * 1e3, "p99_ms_at_200": hard_p99,
        "p99_ratio": hard_p99 / easy_p99, "resident_bytes": [before, after],
    }  # fmt: skip


# What the gateway costs ------------------------------------------------------------------------------------


def overhead(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """See above."""
    root.mkdir()
    model = _model(root / "intents", layers=2, seed=0)
    with _service(model, []) as plain, _service(model, ["--processes", "1"]) as gateway:
        medians: dict[str, list[float]] = {"plain": [], "gateway": []}
        for port in (plain, gateway):
            _load(port, 2.0, 1, None)
        for _ in range(options.rounds):
            for name, port in (("plain", plain), ("gateway", gateway)):
                took = _load(port, 5.0, 1, None)["admitted"]
                medians[name].append(float(np.median(took)) * 1e3)
    pairs = zip(medians["gateway"], medians["plain"], strict=True)
    return {"p50_ms": medians, "overhead_ms_p50": statistics.median(a - b for a, b in pairs)}


# -------------------------------------------------------------------------------------------------------------


def _model(directory: Path, *, layers: int, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm(), num_labels=77, num_hidden_layers=layers
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(directory)
    return directory


def _bodies() -> list[str]:
    """Texts of 16 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    words = sorted(word for word in tokenizer.get_vocab() if re.fullmatch("[a-z]{3,8}", word))[:7000]
    texts = [" ".join(words[14 * number : 14 * number + 14]) for number in range(500)]
    return [json.dumps({"input": text}) for text in texts]


class _Service:
    """`tutti serve`, ready."""

    def __init__(self, place: Path, port: int, words: list[str]) -> None:
        environment = os.environ | {"TUTTI_API_KEY": _KEY, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tutti", "serve", str(place), "--port", str(port)]
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [*command, "--engine", "native", *words], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()
        self.until("serving ", start=True)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said += [""]
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def until(self, words: str, *, start: bool = False) -> None:
        """Until it has said `words`."""
        end = time.monotonic() + _READY_SECONDS
        while not any(line.startswith(words) if start else words in line for line in list(self.said)):
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit("the service does not come to that:\n" + "\n".join(self.said[-30:]))
            time.sleep(0.05)

    def resident_bytes(self) -> int:
        """Of all its processes."""
        own = psutil.Process(self.process.pid)
        return int(sum(one.memory_info().rss for one in (own, *own.children(recursive=True))))

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(120)


@contextmanager
def _service(model: Path, words: list[str]) -> Iterator[int]:
    port = free_port()
    service = _Service(model, port, words)
    try:
        yield port
    finally:
        service.end()


def _load(port: int, seconds: float, connections: int, rate: float | None) -> dict[str, Any]:
    asked = {"url": f"http://127.0.0.1:{port}/v1/classify", "key": _KEY, "bodies": _bodies()}
    asked |= {"seconds": seconds, "connections": connections, "rate": rate}
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve.load"],
        input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found: dict[str, Any] = json.loads(said)
    return found


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith(("]", "}"))]


def _page(machine: dict[str, Any], found: dict[str, Any]) -> str:
    parts = [f"# Releases: swaps, drains, overload, and what the gateway costs\n\n{machine_line(machine)}"]
    if (one := found.get("swaps")) is not None:
        rows = [
            ["requests in the client's log", f"{one['requests']:,}"],
            ["rolling swaps, drains", f"{one['swaps']}, {one['drains']}"],
            ["answered with 200", f"{one['answered_200']:,}"],
            ["**lost**", f"**{one['lost']}**"],
            ["answers that the audit log has not exactly once", f"{one['spurious']}"],
            ["tries refused while the service was down", f"{one['refused_at_the_door']:,}"],
            ["tries closed before they were begun", f"{one['closed_before_they_were_begun']}"],
            ["versions that answered", f"{one['versions']}"],
            ["roll-backs", f"{one['rolled_back']}"],
            ["exit codes", f"{one['exit_codes']}"],
        ]
        parts.append(f"## Swaps and drains\n\n{table(['', ''], rows)}{_loads(one)}")
    if (one := found.get("overload")) is not None:
        mib = [round(size / 2**20) for size in one["resident_bytes"]]
        rows = [["it manages, requests a second", f"{one['capacity_per_second']:.0f}"]]
        for share in (80, 200):
            p50, p99 = one[f"p50_ms_at_{share}"], one[f"p99_ms_at_{share}"]
            rows.append([f"at {share} %: statuses", f"{one[f'statuses_at_{share}']}"])
            rows.append([f"at {share} %: p50, p99 of those admitted (ms)", f"{p50:.1f}, {p99:.1f}"])
        rows.append(["p99 at 200 % ÷ p99 at 80 %", f"**{one['p99_ratio']:.2f}**"])
        rows.append(["memory before and after 200 % (MiB)", f"{mib[0]}, {mib[1]}"])
        told = f"{one['minutes']:g} minutes of 200 %, `--queue {one['queue']}`"
        parts.append(f"## Overload\n\n{told}\n\n{table(['', ''], rows)}{_loads(one)}")
    if (one := found.get("overhead")) is not None:
        rows = [
            [name, ", ".join(f"{value:.2f}" for value in values)] for name, values in one["p50_ms"].items()
        ]
        rows.append(["**more, p50**", f"**{one['overhead_ms_p50']:.2f}**"])
        parts.append(
            f"## What the gateway costs (ms, p50 of each round)\n\n{table(['', ''], rows)}{_loads(one)}"
        )
    return "\n\n".join(parts) + "\n"


def _loads(one: dict[str, Any]) -> str:
    before, after = one["load_average"]
    return f"\n\nLoad average {before:.1f} before, {after:.1f} after."


if __name__ == "__main__":
    main()
