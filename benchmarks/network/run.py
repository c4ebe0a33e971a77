"""What policies and codecs cost and gain between hosts whose links have a rate, beside others' software.

    make bench-network               (as root, with iproute2; or: python -m benchmarks.network.run --help)

Three things are measured of every arm (`arms.py`): what it learns from one common checkpoint, what a step takes at
each rate, and, of a few, a whole training over the network; `setting.py` has every number. Results are kept one by
one below --out: what was interrupted goes on, also on another day, and the page says what is missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.common import ROOT, describe_machine, write_result
from benchmarks.network import measure, plot, report
from benchmarks.network.arms import Arm, chosen
from benchmarks.network.fleet import FleetFailed
from benchmarks.network.hosts import Hosts, why_not
from benchmarks.network.judge import as_json, baseline, ends_just_above, rows_of, verdicts
from benchmarks.network.origin import Origin, make_origin
from benchmarks.network.processes import start_server
from benchmarks.network.results import Result, Store
from benchmarks.network.setting import FULL, SMOKE

STAGES = ("convergence", "longer", "step_time", "delayed", "full_run")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smoke", action="store_true", help="everything once, tiny: for whoever changes this"
    )
    parser.add_argument(
        "--minutes", type=float, help="begin nothing that would take longer; go on another time"
    )
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--arms", nargs="*", metavar="NAME", help="some of those in arms.py")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "network")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    setting = SMOKE if options.smoke else FULL
    try:
        arms = chosen(options.arms or setting.arms)
    except ValueError as error:
        parser.error(str(error))
    if not set(options.stages) <= {"convergence", "longer"} and (reason := why_not()) is not None:
        print(f"nothing measured: {reason}; what needs no network: --stages convergence longer")
        return
    machine = describe_machine()
    work = options.work.absolute() / setting.name
    work.mkdir(parents=True, exist_ok=True)
    start_server()
    budget = Budget(options.minutes)
    origin = make_origin(setting, work)
    store = Store(options.out / setting.name, setting)
    session = Session(origin, store, work, budget)
    for stage in options.stages:
        getattr(session, stage)(arms)
    write(options.out, machine, session, arms)


@dataclass
class Budget:
    """`minutes` from now (None: no end). What is begun is ended, so it is begun only if it can be."""

    minutes: float | None
    _began: float = field(default_factory=time.monotonic)
    _spent: dict[str, list[float]] = field(default_factory=dict)

    def allows(self, kind: str) -> bool:
        """Whether there is time for one more of `kind`, as the former ones went."""
        if self.minutes is None:
            return True
        left = self._began + 60 * self.minutes - time.monotonic()
        return left > median(self._spent.get(kind, [0.0]))

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Around one measurement."""
        began = time.monotonic()
        yield
        self._spent.setdefault(kind, []).append(time.monotonic() - began)


@dataclass
class Session:
    """One sitting: measures what is not yet in the store."""

    origin: Origin
    store: Store
    work: Path
    budget: Budget
    failures: dict[str, list[str]] = field(default_factory=dict)

    @property
    def hosts(self) -> int:
        """One for each replica, and one for a parameter server."""
        return self.origin.setting.replicas + 1

    def convergence(self, arms: Sequence[Arm]) -> None:
        """Every arm at the first learning rate, then at the second, …: half the time gives half of all arms' sweep."""
        for factor in self.origin.setting.learning_rate_factors:
            for arm in arms:
                self._one(
                    "convergence",
                    arm,
                    (factor,),
                    partial(measure.convergence, self.origin, arm, factor, self.work),
                )

    def longer(self, arms: Sequence[Arm]) -> None:
        """Arms that end near the baseline, but above it, with some steps more: until they come where it ended."""
        for longer in self.origin.setting.longer:
            rows = rows_of(self.origin, self.store, arms, {})
            base = baseline(rows)
            for row in rows:
                if base is not None and row.factor is not None and ends_just_above(row, base):
                    self._one(
                        "longer",
                        row.arm,
                        (row.factor, longer),
                        partial(
                            measure.convergence, self.origin, row.arm, row.factor, self.work, longer=longer
                        ),
                    )

    def step_time(self, arms: Sequence[Arm]) -> None:
        """Every arm at every rate."""
        with Hosts(self.hosts) as hosts:
            for rate in self.origin.setting.rates:
                for arm in arms:
                    self._one(
                        "step_time",
                        arm,
                        (rate,),
                        partial(measure.step_time, self.origin, arm, hosts, rate, self.work),
                    )

    def delayed(self, arms: Sequence[Arm]) -> None:
        """A few arms with latency."""
        known = {arm.name: arm for arm in arms}
        for name, rate, delay in self.origin.setting.delays:
            if name in known:
                with Hosts(self.hosts, delay) as hosts:
                    self._one(
                        "delayed",
                        known[name],
                        (rate, delay),
                        partial(measure.step_time, self.origin, known[name], hosts, rate, self.work),
                    )

    def full_run(self, arms: Sequence[Arm]) -> None:
        """The product itself, whole, at the best learning rate that is known."""
        rows = {row.arm.name: row for row in rows_of(self.origin, self.store, arms, {})}
        with Hosts(self.hosts) as hosts:
            for name, rate in self.origin.setting.full_runs:
                if name in rows:
                    arm, factor = rows[name].arm, rows[name].factor or 1.0
                    self._one(
                        "full_run",
                        arm,
                        (rate,),
                        partial(measure.full_run, self.origin, arm, factor, hosts, rate, self.work),
                    )

    def _one(self, kind: str, arm: Arm, numbers: tuple[float, ...], take: Callable[[], Result]) -> None:
        what = " ".join([kind, arm.name, *(f"{number:g}" for number in numbers)])
        if self.store.get(kind, arm, *numbers) is not None or not self.budget.allows(kind):
            return
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
        try:
            with self.budget.spending(kind):
                result = take()
        except FleetFailed as error:  # the others may well succeed; it is tried again the next time
            print(f"{what} failed: {error}", flush=True)
            self.failures.setdefault(arm.name, []).append(f"{what} failed: {str(error).splitlines()[-1]}")
        else:
            self.store.put(kind, arm, *numbers, result=result)


def write(out: Path, machine: dict[str, object], session: Session, arms: Sequence[Arm]) -> None:
    """JSON, page and picture of what the store has."""
    origin, store, setting = session.origin, session.store, session.origin.setting
    known = {arm.name: arm for arm in arms}
    rows = rows_of(origin, store, arms, session.failures)
    delays = {
        key: found
        for key in setting.delays
        if key[0] in known and (found := store.get("delayed", known[key[0]], *key[1:])) is not None
    }
    full_runs = {
        key: found
        for key in setting.full_runs
        if key[0] in known and (found := store.get("full_run", known[key[0]], key[1])) is not None
    }
    name = "network" if setting.name == "full" else f"network-{setting.name}"
    data = {
        "benchmark": "network",
        "machine": machine,
        "setting": vars(setting),
        "verdicts": [vars(verdict) for verdict in verdicts(origin, rows)],
        "arms": as_json(origin, rows),
        "delayed": [{"what": key, **found} for key, found in delays.items()],
        "full_runs": [{"what": key, **found} for key, found in full_runs.items()],
    }
    picture = f"{time.strftime('%Y-%m-%d')}-{name}.png"
    page = write_result(out, name, data, report.page(machine, origin, rows, delays, full_runs, picture))
    plot.draw(origin, rows, out / picture)
    print(page.read_text(encoding="utf-8"))
    print(f"written to {page}")


if __name__ == "__main__":
    main()
