"""The page that the benchmark leaves: what was measured, how, what follows, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import machine_line, table
from benchmarks.network.arms import NOT_MEASURED
from benchmarks.network.hosts import BURST_KB, MTU
from benchmarks.network.judge import (
    NEAR,
    Row,
    baseline,
    ceiling,
    parameters,
    seconds_to,
    utilisation,
    verdicts,
)
from benchmarks.network.origin import Origin
from benchmarks.network.results import Result

#: How far meter, formula and the kernel's count may lie apart.
_AGREEMENT = 0.03


def page(
    machine: dict[str, Any],
    origin: Origin,
    rows: Sequence[Row],
    delays: dict[tuple[str, float, float], Result],
    full_runs: dict[tuple[str, float], Result],
    plot: str,
) -> str:
    """Markdown."""
    parts = [
        "# Network: loss, bytes and time of policies and codecs",
        machine_line(machine) + ".",
        _method(origin, rows),
        "## Targets",
        _beginnings(rows),
        _targets(origin, rows),
        f"![loss gap against bytes, and time to the loss]({plot})",
        "## Loss",
        _losses(origin, rows),
        _longer(origin, rows),
        "## Bytes",
        _bytes(origin, rows),
        "## Step times",
        _step_times(origin, rows),
        "## Time to the loss",
        _times(origin, rows),
        "## Latency",
        _delays(origin, rows, delays),
        "## Full runs",
        _full(origin, rows, full_runs),
        "## What is missing, and what happened on the way",
        _missing(origin, rows, delays, full_runs),
        "Repeat: `make bench-network`" + (" with `--smoke`." if origin.setting.name == "smoke" else "."),
    ]
    return "\n\n".join(filter(None, parts))


def rate_name(rate: float) -> str:
    """For a head of a column."""
    return f"{rate:g} Mbit/s" if rate else "unshaped"


def _method(origin: Origin, rows: Sequence[Row]) -> str:
    s, precision = origin.setting, origin.config.train.precision
    everywhere = [f for f in s.learning_rate_factors if all(f in row.curves for row in rows)]
    of_some = [f for f in s.learning_rate_factors if f not in everywhere]
    factors = ", ".join(f"{factor:g}" for factor in everywhere)
    others = (
        f" (of some arms also at {', '.join(f'{factor:g}' for factor in of_some)} times that)"
        if of_some
        else ""
    )
    return (
        f"{s.replicas} replicas of {parameters(origin) / 1e6:.1f}M parameters ({precision}), {s.batch} samples of "
        f"{s.sequence} tokens a step over all, the standard library's sources as text. Every arm starts from one "
        f"checkpoint, made by {s.origin_steps} plain steps of one process, and trains {s.steps} steps at "
        f"{factors} × {s.learning_rate:g}{others}; the best end counts, by loss on {s.validation_samples} held-out "
        f"samples. "
        f"Learning was measured with replicas side by side and no network; step times on hosts of their own: network "
        f"namespaces on a bridge, `tbf` (burst {BURST_KB} KB), no segmentation offload, MTU {MTU}. There are more "
        f"replicas than cores, so compute has a pace by decree: {s.compute_seconds:g} s of forward and backward, "
        f"spread over the layers, and {s.optimizer_seconds:g} s of optimizer. What codecs compute costs time only "
        f"where it does not run beside that. A step time is the mean of {s.timed_steps} steps (whole rounds; fewer "
        f"where they would take more than {s.timed_seconds:g} s) of the slowest replica."
    )


def _beginnings(rows: Sequence[Row]) -> str:
    """Whether all arms began from the very same weights."""
    losses = sorted({result["curve"][0][1] for row in rows for result in row.curves.values()})
    if len(losses) < 2:
        return ""
    between = f"{losses[0]:.4f} to {losses[-1]:.4f}"
    return f"The checkpoint was made {len(losses)} times, by the same steps on other days: its loss was {between}."


def _targets(origin: Origin, rows: Sequence[Row]) -> str:
    words = {True: "met", False: "MISSED", None: "open"}
    return "\n".join(f"- {words[v.met]}: {v.target}: {v.found}" for v in verdicts(origin, rows))


def _losses(origin: Origin, rows: Sequence[Row]) -> str:
    said = (
        "Gap and bytes against the baseline at equal tokens. Fewer bytes: of what is exchanged. On the link: of all "
        "that the kernel counted, membership's signs of life with it, which weigh the more the less is exchanged."
    )
    base = baseline(rows)
    lines = []
    for row in rows:
        if row.loss is None or row.factor is None:
            continue
        gap = f"{row.loss / base.loss - 1:+.2%}" if base is not None and base.loss is not None else ""
        fewer = f"{base.sent / row.sent:.1f}×" if base is not None and base.sent and row.sent else ""
        linked = f"{base.linked / row.linked:.1f}×" if base is not None and base.linked and row.linked else ""
        ends = [
            f"{row.curves[f]['curve'][-1][1]:.4f}" if f in row.curves else "missing"
            for f in origin.setting.learning_rate_factors
        ]
        seconds = sum(found["seconds"] for found in row.curves.values())
        lines.append([row.arm.name, f"{row.loss:.4f}", gap, fewer, linked, *ends, f"{seconds:.0f}"])
    rates = (f"at {factor:g} × lr" for factor in origin.setting.learning_rate_factors)
    return (
        said
        + "\n\n"
        + table(
            ("arm", "final loss", "gap", "fewer bytes", "on the link", *rates, "seconds that this took"),
            lines,
        )
    )


def _longer(origin: Origin, rows: Sequence[Row]) -> str:
    lines = [
        [row.arm.name, *(f"{row.longer[n]['curve'][-1][1]:.4f}" if n in row.longer else "" for n in lengths)]
        for row in rows
        if row.longer and (lengths := origin.setting.longer)
    ]
    if not lines:
        return ""
    said = (
        "Final loss with more steps, the learning rate falling at the end of them, of arms that end less than "
        f"{NEAR:.0%} above the baseline: what they lose at equal tokens they may win back in time."
    )
    return said + "\n\n" + table(("arm", *(f"{n:g} × the steps" for n in origin.setting.longer)), lines)


def _bytes(origin: Origin, rows: Sequence[Row]) -> str:
    lines = []
    numbers = parameters(origin)
    for row in rows:
        if not row.by_rate:
            continue
        found = next(iter(row.by_rate.values()))
        metered = found["metered"] or None
        control = found["idle_sent_per_second"] * found["step_seconds"]
        net = found["sent"] - control
        if row.arm.served:
            net += found["received"] - found["idle_received_per_second"] * found["step_seconds"]
        lines.append(
            [
                row.arm.name,
                *(f"{value / numbers:.4g}" if value else "" for value in (row.formula, metered)),
                *(f"{found[name] / numbers:.4g}" for name in ("sent", "received")),
                f"{found['idle_sent_per_second'] / 1000:.1f}",
                _ratio(metered, row.formula),
                _ratio(net, metered or row.formula),
                _agreement(net, metered, row.formula),
            ]
        )
    said = (
        "Per parameter, step and replica: by formula, by Tutti's meter, and by the kernel's counters of the link, sent "
        "and received, with headers, acknowledgements and membership. Signs of life: what a link sends when nothing is "
        "exchanged; taken off before link ÷ meter. With a server formula and meter hold both directions."
    )
    head = (
        "arm", "formula", "meter", "link sent", "link received", "signs of life, kB/s", "meter ÷ formula",
        "link ÷ meter", f"within {_AGREEMENT:.0%}",
    )  # fmt: skip
    return said + "\n\n" + table(head, lines)


def _ratio(some: float | None, other: float | None) -> str:
    return f"{some / other:.3f}" if some and other else ""


def _agreement(net: float, metered: float | None, formula: float | None) -> str:
    known = [value for value in (net, metered, formula) if value]
    if len(known) < 2:
        return ""
    apart = max(known) / min(known) - 1
    return "yes" if apart <= _AGREEMENT else f"no: {apart:.1%}"


def _step_times(origin: Origin, rows: Sequence[Row]) -> str:
    rates = origin.setting.rates
    lines = []
    for row in rows:
        if not row.by_rate:
            continue
        cells = []
        for rate in rates:
            found = row.by_rate.get(rate)
            cells.append(
                f"{found['step_seconds']:.2f} ({utilisation(origin, found):.1%}; {found['steps']})"
                if found
                else "missing"
            )
        lines.append([row.arm.name, *cells])
    ceilings = [f"{c:.2f}×" if (c := ceiling(origin, rows, rate)) else "" for rate in rates]
    lines.append(["ceiling of a speed-up, 1 + T_comm ÷ T_compute", *ceilings])
    said = "Seconds a step; in brackets utilisation, the pace ÷ the time of a step, and how many steps were timed."
    return said + "\n\n" + table(("arm", *map(rate_name, rates)), lines)


def _times(origin: Origin, rows: Sequence[Row]) -> str:
    base = baseline(rows)
    if base is None or base.loss is None:
        return "Not measured: the baseline is missing."
    lines = []
    for row in rows:
        if row.curve is None or not row.by_rate:
            continue
        cells = []
        for rate in origin.setting.rates:
            if rate not in row.by_rate:
                cells.append("missing")
                continue
            to = [seconds_to(row, rate, loss) for loss in (base.loss, base.loss * (1 + NEAR))]
            cells.append(" / ".join("never" if s is None else f"{s:.0f}" for s in to))
        lines.append([row.arm.name, *cells])
    said = (
        f"Seconds from the checkpoint to the loss that {base.arm.name} ends at ({base.loss:.4f}) / to {NEAR:.0%} above "
        "it: steps by the loss curve × the time of a step. Never: not within the steps that it was given."
    )
    return said + "\n\n" + table(("arm", *map(rate_name, origin.setting.rates)), lines)


def _delays(origin: Origin, rows: Sequence[Row], delays: dict[tuple[str, float, float], Result]) -> str:
    without = {row.arm.name: row.by_rate for row in rows}
    lines = []
    for (name, rate, delay), found in delays.items():
        plain = without.get(name, {}).get(rate)
        lines.append(
            [
                name,
                rate_name(rate),
                f"{delay:g}",
                f"{found['step_seconds']:.2f} ({utilisation(origin, found):.1%})",
                f"{plain['step_seconds']:.2f}" if plain else "",
            ]
        )
    said = "A user-space relay between TUN devices keeps every packet for a while (this kernel may have no `netem`)."
    return said + "\n\n" + table(("arm", "rate", "one way, ms", "s a step", "without"), lines)


def _full(origin: Origin, rows: Sequence[Row], full_runs: dict[tuple[str, float], Result]) -> str:
    known = {row.arm.name: row for row in rows}
    lines = []
    for (name, rate), found in full_runs.items():
        row = known.get(name)
        step = row.by_rate[rate]["step_seconds"] if row is not None and rate in row.by_rate else None
        measured = found["step_seconds"] * found["steps"] - found["validating_seconds"]
        foreseen = step * found["steps"] if step else None
        same = row.curves.get(found["factor"]) if row is not None else None
        lines.append(
            [
                name,
                rate_name(rate),
                f"{measured:.0f}",
                f"{foreseen:.0f} ({measured / foreseen - 1:+.1%})" if foreseen else "missing",
                f"{found['validating_seconds']:.0f}",
                f"{found['curve'][-1][1]:.4f}",
                f"{same['curve'][-1][1]:.4f}" if same else "missing",
            ]
        )
    said = (
        "The same training, whole, over the network and at the pace: its wall time (validations taken off) beside "
        "steps × the time of a step, and its loss beside that of the replicas without a network."
    )
    head = ("arm", "rate", "seconds", "foreseen", "validating", "final loss", "without network")
    return said + "\n\n" + table(head, lines)


def _missing(
    origin: Origin,
    rows: Sequence[Row],
    delays: dict[tuple[str, float, float], Result],
    full_runs: dict[tuple[str, float], Result],
) -> str:
    setting, lines = origin.setting, []
    for row in rows:
        if row.missing_factors:
            lines.append(
                f"{row.arm.name}: learning rates {', '.join(f'{f:g}×' for f in row.missing_factors)}"
            )
        if absent := [rate_name(rate) for rate in setting.rates if rate not in row.by_rate]:
            lines.append(f"{row.arm.name}: step times at {', '.join(absent)}")
        # A server sees every member come at the start, one by one, and go at the end.
        usual = 2 * setting.replicas - 1 if row.arm.served else 0
        measured = (*row.curves.values(), *row.by_rate.values())
        changed = sum(max(0, result["changes_of_members"] - usual) for result in measured)
        if changed:
            lines.append(f"{row.arm.name}: members were lost or came back {changed} times")
        lines += [f"{row.arm.name}: {failure}" for failure in row.failures]
    lines += [f"{name}: {why}" for name, why in NOT_MEASURED.items()]
    lines += [f"latency: {' '.join(map(str, key))}" for key in setting.delays if key not in delays]
    lines += [f"full run: {' '.join(map(str, key))}" for key in setting.full_runs if key not in full_runs]
    found: list[Result] = [*delays.values(), *full_runs.values()]
    found += [r for row in rows for r in (*row.curves.values(), *row.longer.values(), *row.by_rate.values())]
    commits = sorted({str(result["commit"]) for result in found})
    busy = max((result["load_average"] for result in found), default=0)
    said = [
        f"Measured at commit {', '.join(commits) or 'none'}; largest load average at a measurement's end {busy:g}."
    ]
    return "\n".join([*said, "", *(f"- {line}" for line in lines)])
