"""Sums inside machines first: what that saves on the network, by the commands that a user types.

    make bench-levels                      (as root, with iproute2; or: python -m benchmarks.levels.run --help)

Two hosts (network namespaces, links of a stated rate) with two replicas each: `tutti train --listen` on one, `tutti
join` on the other. Every round trains with `topology: hierarchical` and `flat` by each codec. Bytes are what the
first host's link sent, all of it, and are held against 2 (H − 1)/H payloads for H hosts and 2 (n − 1)/n · k … for n
replicas, k a host; seconds are the median step's.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import joined
from benchmarks.common import describe_machine, machine_line, median_and_spread, table, write_result
from benchmarks.network.hosts import DEVICE, Hosts, why_not

HERE = Path(__file__).resolve().parent
EACH, HOSTS = 2, 2
STEPS, WARMUP = 40, 5
CODECS = ("fp32", "bf16", "int8", "topk")
TOPOLOGIES = ("hierarchical", "flat")
SETTINGS = (
    *("data.source=python-stdlib", "data.sequence=64", "model=800K"),
    *("train.batch=16", "train.precision=fp32", f"train.steps={STEPS}", "evaluate.prompts=[]"),
    *(f"evaluate.every={STEPS}", f"checkpoint.every={STEPS}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="of a host's link, Mbit/s")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"nothing measured: {reason}")
        return
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-levels-"))
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        with Hosts(HOSTS) as hosts:
            hosts.shape(options.rate)
            for number in range(options.rounds):
                for codec in CODECS:
                    for topology in TOPOLOGIES if number % 2 == 0 else TOPOLOGIES[::-1]:
                        result = train(work, hosts, codec, topology)
                        found.setdefault((codec, topology), []).append(result)
                        print(f"round {number + 1}: {codec} {topology}: {result}", flush=True)
        page = report(options, machine, found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("\n" + page.read_text())
    print(f"written to {page}")


def train(work: Path, hosts: Hosts, codec: str, topology: str) -> dict[str, float]:
    """One training: bytes a step that left the first host, and seconds of a step."""
    before = sent(hosts)
    words = [*SETTINGS, f"sync.codec={codec}", f"sync.topology={topology}"]
    run = joined.train(work, hosts, EACH, words)
    return {
        "bytes": (sent(hosts) - before) / STEPS,
        "seconds": joined.step_seconds(run, WARMUP, STEPS - 1),
    }


def sent(hosts: Hosts) -> int:
    """Bytes that have left the first host by its link."""
    counter = f"/sys/class/net/{DEVICE}/statistics/tx_bytes"
    words = ["ip", "netns", "exec", hosts.space(0), "cat", counter]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def report(
    options: argparse.Namespace, machine: dict[str, Any], found: dict[tuple[str, str], list[dict[str, float]]]
) -> Path:
    """The page and its JSON."""
    rows = []
    for codec in CODECS:
        two, flat = (found[codec, topology] for topology in TOPOLOGIES)
        cells = [codec]
        for key, unit in (("bytes", 1e6), ("seconds", 1e-3)):
            for some in (two, flat):
                spread = median_and_spread([result[key] / unit for result in some])
                cells.append(f"{spread['median']:.3g}")
            ratio = [a[key] / b[key] for a, b in zip(two, flat, strict=True)]
            cells.append(f"{median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})")
        rows.append(cells)
    head = ["codec", "MB a step: two levels", "flat", "ratio", "ms a step: two levels", "flat", "ratio"]
    page = (
        f"# Two levels\n\n{machine_line(machine)}\n\n"
        f"{HOSTS} hosts with {EACH} replicas each, links of {options.rate:g} Mbit/s, a Llama of 800K parameters; "
        f"`allreduce`, {STEPS} steps, {options.rounds} rounds; bytes sent by the first host's link, start and signs of "
        "life with them; medians, in brackets the smallest and largest. By the formula the ratio of bytes is 0.67 "
        "for numbers that add up on the way (fp32, bf16: 2 (H − 1)/H to 2 (n − 1)/n), 0.5 for int8, 0.25 for topk.\n\n"
        + table(head, rows)
    )
    data = {"machine": machine, "found": {" ".join(key): value for key, value in found.items()}}
    return write_result(options.out, "levels", data, page)


if __name__ == "__main__":
    main()
