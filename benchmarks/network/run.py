"""Step times and bytes of policies and codecs between hosts whose links have a rate.

    make bench-network                      (as root, with iproute2; or: python -m benchmarks.network.run --help)

Each replica is a process on a host of its own: a network namespace behind a link of 10, 100 or 1000 Mbit/s, or as fast
as it goes. There are more replicas than cores here, so compute has a stated pace: forward and backward take so long,
whatever the cores do. Utilisation is that pace ÷ the time of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, describe_machine, machine_line, table, write_result
from benchmarks.network.hosts import DEVICE, MTU, Hosts, why_not

ARMS: dict[str, dict[str, Any]] = {
    "allreduce fp32": {},
    "allreduce bf16": {"codec": "bf16"},
    "allreduce int8": {"codec": "int8"},
    "allreduce int4": {"codec": "int4"},
    "allreduce topk 1/64": {"codec": "topk", "density": 1 / 64},
    "allreduce powersgd 4": {"codec": "powersgd", "matrix_rank": 4},
    "local_sgd 10 bf16": {"policy": "local_sgd", "every": 10, "codec": "bf16"},
    "diloco 10 int4": {"policy": "diloco", "every": 10, "codec": "int4"},
    "diloco 10 topk 1/64, 2 bits": {
        "policy": "diloco", "every": 10, "codec": "topk", "value_bits": 2, "feedback_decay": 0.95,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1, help="of a step and replica")
    parser.add_argument("--pace-seconds", type=float, default=2.0, help="forward and backward of a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--rates", type=float, nargs="*", help="Mbit/s; 0: unshaped", default=[10, 100, 1000, 0]
    )
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"nothing measured: {reason}")
        return
    machine = describe_machine()
    task = {
        name: getattr(options, name)
        for name in ("replicas", "width", "layers", "samples", "pace_seconds", "steps")
    }
    task["arms"] = {name: ARMS[name] for name in options.arms}
    rates: dict[str, Any] = {}
    with Hosts(options.replicas) as hosts:
        for rate in options.rates:
            hosts.shape(rate or None)
            rates[f"{rate:g} Mbit/s" if rate else "unshaped"] = measure(hosts, task)
    data = {"benchmark": "network", "machine": machine, "task": task, "rates": rates}
    page = write_result(options.out, "network-steps", data, page_of(machine, data))
    print(page.read_text())
    print(f"written to {page}")


def measure(hosts: Hosts, task: dict[str, Any]) -> dict[str, Any]:
    """By arm: the slowest replica's time of every step, and bytes of all replicas together.

    Raises:
        RuntimeError: a replica died; its last lines.
    """
    command = [sys.executable, "-m", "benchmarks.network.replica", "--task", json.dumps(task)]
    replicas = [
        hosts.start(
            host,
            [
                "env",
                f"GLOO_SOCKET_IFNAME={DEVICE}",
                f"PYTHONPATH={ROOT}:{ROOT / 'src'}",
                *command,
                "--rank",
                str(host),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for host in range(hosts.count)
    ]
    answers = [replica.communicate() for replica in replicas]
    for replica, (_, err) in zip(replicas, answers, strict=True):
        if replica.returncode != 0:
            raise RuntimeError(err[-2000:])
    lines = [[json.loads(line) for line in out.splitlines()] for out, _ in answers]
    found = {}
    for of_replicas in zip(*lines, strict=True):
        seconds = [max(times) for times in zip(*(line["seconds"] for line in of_replicas), strict=True)]
        found[of_replicas[0]["arm"]] = {
            "seconds": seconds,
            "mean_seconds": statistics.fmean(seconds),  # a round's cost falls on one step
            "predicted": max(line["predicted"] for line in of_replicas),
            "metered": sum(line["metered"] for line in of_replicas),
            "linked": sum(line["linked"] for line in of_replicas),
            "parameters": of_replicas[0]["parameters"],
        }
    return found


def said_options(data: dict[str, Any]) -> str:
    """Rates and pace as on the command line."""
    rates = " ".join("0" if name == "unshaped" else name.split()[0] for name in data["rates"])
    return f"`--rates {rates} --pace-seconds {data['task']['pace_seconds']:g}`"


def page_of(machine: dict[str, Any], data: dict[str, Any]) -> str:
    task, rates = data["task"], data["rates"]
    rows = []
    for arm in task["arms"]:
        first = next(iter(rates.values()))[arm]
        numbers = first["parameters"] * task["steps"] * task["replicas"]
        ratios = [found[arm]["linked"] / found[arm]["metered"] for found in rates.values()]
        cells = [
            f"{found[arm]['mean_seconds']:.2f} ({task['pace_seconds'] / found[arm]['mean_seconds']:.0%}; "
            f"{found[arm]['predicted']:.2f})"
            for found in rates.values()
        ]
        rows.append(
            [arm, f"{first['metered'] / numbers:.4f}", f"{min(ratios):.3f} to {max(ratios):.3f}", *cells]
        )
    parameters = next(iter(next(iter(rates.values())).values()))["parameters"]
    return "\n".join(
        [
            "# Network: step times and bytes",
            "",
            machine_line(machine) + ".",
            "",
            f"{task['replicas']} replicas on hosts of their own (network namespaces on one machine, MTU {MTU}), "
            f"{parameters / 1e6:.1f}M parameters; forward and backward of a step take {task['pace_seconds']:g} s by "
            f"decree (the machine has fewer cores than replicas); {task['steps']} steps, means of the slowest replica; "
            "in brackets utilisation, that pace ÷ the time of a step, and the time that `sync: auto` predicts from "
            "what it measures before. Bytes: sent by each replica, per parameter "
            "and step, as the meter counts them; and what the kernel counted on the link (headers and acknowledgements "
            "of others' data with it) ÷ the meter.",
            "",
            table(("arm", "bytes", "link ÷ meter", *(f"s a step, {rate}" for rate in rates)), rows),
            "",
            f"Repeat: `make bench-network`; here with {said_options(data)}.",
        ]
    )


if __name__ == "__main__":
    main()
