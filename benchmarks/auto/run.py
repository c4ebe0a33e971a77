"""`sync: auto` on links of several rates: is what it chooses as good as the best of what it could have chosen?

    make bench-auto                      (as root, with iproute2; or: python -m benchmarks.auto.run --help)

Two hosts with one replica each (so each has a core), `tutti train --listen` and `tutti join`. At every rate one run
with `sync: auto` says what it chooses and predicts; then every rung of its ladder is timed by a run of its own, in the
same few minutes: medians of steps, for rounds the mean of whole rounds. Rounds of 10 steps are timed, longer ones
follow from them: a step without a meeting takes what it takes, and a meeting as well.

Good is seconds of a step × the rung's price in steps (`sync/ladder.py`), which is what `auto` goes by; the prices are
not judged here. The targets: what was chosen is at most 5 % worse than the best, and at most 5 % slower than all-reduce
in bf16.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks import joined
from benchmarks.common import describe_machine, machine_line, table, write_result
from benchmarks.network.hosts import Hosts, why_not
from tutti.config.agreement import SyncConfig
from tutti.core import read_events
from tutti.core.rundir import RunDirectory
from tutti.sync.choose import NOISE
from tutti.sync.cost import step_seconds
from tutti.sync.ladder import Rung, rungs
from tutti.train.measure import read_measured

HERE = Path(__file__).resolve().parent
HOSTS, STEPS = 2, 1000
RATES = (10.0, 30.0, 100.0, 300.0, 1000.0, 0.0)
SETTINGS = (
    *("data.source=python-stdlib", "data.sequence=128", "model=3M", "train.batch=16", "train.precision=fp32"),
    *(f"train.steps={STEPS}", "evaluate.prompts=[]", f"evaluate.every={STEPS}", f"checkpoint.every={STEPS}"),
)
SUMS, ROUND = 8, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", type=float, nargs="*", default=list(RATES), help="Mbit/s; 0: unshaped")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"nothing measured: {reason}")
        return
    machine = describe_machine()
    work = Path(tempfile.mkdtemp(prefix="tutti-auto-"))
    found: dict[float, dict[str, Any]] = {}
    try:
        with Hosts(HOSTS) as hosts:
            for rate in options.rates:
                hosts.shape(rate or None)
                found[rate] = at_rate(work, hosts)
                print(f"{rate:g} Mbit/s: {found[rate]}", flush=True)
                page = report(options.out, machine, found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("\n" + page.read_text())
    print(f"written to {page}")


def at_rate(work: Path, hosts: Hosts) -> dict[str, Any]:
    """What `auto` chooses and predicts, and what every rung takes."""
    run = joined.train(work, hosts, 1, [*SETTINGS, "sync=auto"], until=1)
    chosen = SyncConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text())["sync"])
    ranks = read_measured(RunDirectory(run), 0.0, HOSTS)
    assert ranks is not None
    ladder = rungs(SyncConfig(policy="auto", codec="auto", every="auto", membership="elastic"), "fp32", STEPS)
    seconds: dict[str, float] = {}
    for rung in ladder:
        if rung.sync.policy == "allreduce":
            seconds[rung.name] = sums(work, hosts, rung)
    for codec in {rung.sync.codec for rung in ladder if rung.sync.policy == "diloco"}:
        computing, meeting = rounds(work, hosts, codec)
        for rung in ladder:
            if rung.sync.policy == "diloco" and rung.sync.codec == codec:
                assert isinstance(rung.sync.every, int)
                seconds[rung.name] = computing + meeting / rung.sync.every
    return {
        "chosen": next(rung.name for rung in ladder if named(rung.sync) == named(chosen)),
        "seconds": seconds,
        "predicted": {rung.name: step_seconds(rung.sync, ranks) for rung in ladder},
        "prices": {rung.name: rung.price for rung in ladder},
    }


def named(sync: SyncConfig) -> tuple[Any, ...]:
    return sync.policy, sync.codec, None if sync.policy == "allreduce" else sync.every


def sums(work: Path, hosts: Hosts, rung: Rung) -> float:
    """Seconds of a step of all-reduce."""
    words = ["sync=allreduce", f"sync.codec={rung.sync.codec}"]
    run = joined.train(work, hosts, 1, [*SETTINGS, *words], until=SUMS + 2)
    return joined.step_seconds(run, 2, SUMS + 2)


def rounds(work: Path, hosts: Hosts, codec: str) -> tuple[float, float]:
    """Seconds of a step without a meeting, and what a meeting adds."""
    words = ["sync=diloco", f"sync.codec={codec}", f"sync.every={ROUND}"]
    run = joined.train(work, hosts, 1, [*SETTINGS, *words], until=3 * ROUND + 1)
    ends = {e["step"]: e["time"] for e in read_events(run, "step") if e["rank"] == 0}
    computing = median(ends[s] - ends[s - 1] for s in range(ROUND // 2, 3 * ROUND) if s % ROUND not in (0, 1))
    first, last = ROUND // 2, 2 * ROUND + ROUND // 2  # two meetings lie between
    return computing, (ends[last] - ends[first]) / 2 - ROUND * computing


def report(out: Path, machine: dict[str, Any], found: dict[float, dict[str, Any]]) -> Path:
    """The page and its JSON."""
    rows, worst, slowest = [], 0.0, 0.0
    for rate, at in found.items():
        priced = {name: at["seconds"][name] * at["prices"][name] for name in at["seconds"]}
        best, chosen = min(priced, key=lambda name: priced[name]), at["chosen"]
        behind = priced[chosen] / priced[best] - 1
        beside = at["seconds"][chosen] / at["seconds"]["allreduce bf16"] - 1
        worst, slowest = max(worst, behind), max(slowest, beside)
        off = at["predicted"][chosen] / at["seconds"][chosen] - 1
        rows.append(
            [
                f"{rate:g}" if rate else "unshaped",
                f"{at['seconds']['allreduce bf16']:.3g}",
                f"{chosen}: {at['seconds'][chosen]:.3g}",
                f"{best}: {at['seconds'][best]:.3g}",
                f"{100 * behind:+.1f} %",
                f"{100 * off:+.0f} %",
            ]
        )
    head = [
        *("Mbit/s", "all-reduce bf16, s a step", "`auto` took", "best measured"),
        *("seconds × price, behind the best", "prediction off by"),
    ]
    verdict = ("met" if worst <= NOISE else "missed", "met" if slowest <= NOISE else "missed")
    page = (
        f"# `sync: auto`\n\n{machine_line(machine)}\n\n"
        f"{HOSTS} hosts with a replica each, a Llama of 3M parameters, 16 samples of 128 tokens a step. Within 5 % of "
        f"the best at every rate: {verdict[0]} (worst {100 * worst:.1f} %). Never slower than all-reduce in bf16 by "
        f"more than 5 %: {verdict[1]} (worst {100 * slowest:+.1f} %).\n\n" + table(head, rows)
    )
    data = {"machine": machine, "found": {f"{rate:g}": at for rate, at in found.items()}}
    return write_result(out, "auto", data, page)


if __name__ == "__main__":
    main()
