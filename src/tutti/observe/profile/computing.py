"""What a step computes: how fast for this machine, and what it costs to ask for it operator by operator."""

from __future__ import annotations

from tutti.observe import words
from tutti.observe.profile.cause import Cause, flops, spent
from tutti.observe.profile.figures import Figures
from tutti.observe.tail import number

#: A number format must be so much faster to be worth its rounding; as `hardware.matmul` has it.
_WORTHWHILE = 1.3
#: Below this share of the peak, something else than products of matrices takes the time.
_LOW, _FEW_PRODUCTS = 0.5, 0.6
#: An accelerator that is busy for less than this waits for its host.
_BUSY = 0.8


def compute(figures: Figures) -> Cause:
    """Forward, backward and the optimizer: what every step needs."""
    parts, whole = figures.parts, figures.seconds
    optimizer = parts.get("optimizer", 0.0)
    seconds = figures.computing + optimizer
    named = [
        f"{part} {words.percent(parts[part] / whole)}"
        for part in ("forward", "backward", "compute", "optimizer")
        if part in parts
    ]
    evidence = [f"of a step of {spent(whole)}: {', '.join(named)}"]
    if figures.utilisation is not None and figures.flops and figures.peak_flops:
        evidence.append(
            f"forward and backward reach {flops(figures.flops / figures.computing)}, "
            f"{words.percent(figures.utilisation)} of the {flops(figures.peak_flops)} that matrix products were "
            f"measured at here; MFU over the whole step {words.percent(figures.mfu)}"
        )
    if (products := figures.products_share) is not None:
        evidence.append(f"of the operators' own time {words.percent(products)} is matrix products")
    change, expected, why = _compute_change(figures, optimizer)
    return Cause("compute", seconds, seconds / whole, tuple(evidence), change, expected, why)


def _compute_change(figures: Figures, optimizer: float) -> tuple[str, float | None, str]:
    planned, products = figures.planned, figures.products_share
    if (faster := _faster_format(figures)) is not None and products is not None:
        name, times = faster
        saved = figures.computing * products * (1 - 1 / times)
        return (
            f"train.precision={name}",
            figures.seconds - saved,
            f"its heaviest matrix products were timed in {name}: {times:.1f} times as fast; such products are "
            f"{words.percent(products)}",
        )
    if optimizer >= 0.5 * (figures.computing + optimizer):
        batch = int(planned.get("batch") or 1)
        return (
            f"train.batch={2 * batch}",
            figures.seconds - optimizer / 2,
            "the optimizer takes more than forward and backward, and then steps once for twice as many samples",
        )
    workers, cores = _workers(figures), int(planned.get("cores") or 1)
    threads = int(planned.get("threads") or 1)
    on_cpu = all(rank.said.get("tracing", {}).get("device", "cpu") == "cpu" for rank in figures.ranks)
    if on_cpu and 2 * workers * threads <= cores:
        replicas = int(planned.get("replicas") or 1) * (cores // (workers * threads))
        return (
            f"replicas={replicas}",
            figures.seconds - figures.computing * (1 - workers * threads / cores),
            f"{workers * threads} of {cores} cores compute; at best, without what it takes to agree",
        )
    low = figures.utilisation is not None and figures.utilisation < _LOW
    if low and products is not None and products < _FEW_PRODUCTS and not planned.get("compile"):
        return (
            "train.compile=true",
            figures.seconds - figures.computing * (1 - products),
            "at best: a compiler joins the operators that are no matrix products",
        )
    return (
        "a model of half the size, or workers on other machines (`tutti join`): no setting makes this one cheaper"
        if planned.get("kind_of_job") != "function"
        else "a module that takes half the operations, or more workers: no setting makes this one cheaper",
        figures.seconds - figures.computing / 2,
        "half of forward and backward",
    )


def _faster_format(figures: Figures) -> tuple[str, float] | None:
    """A number format that is clearly faster on every rank than the one in use, and how many times."""
    if figures.planned.get("precision") != "fp32":  # the least that is worth it has been chosen already
        return None
    times = []
    for rank in figures.ranks:
        found = rank.said.get("traced", {}).get("products") or {}
        now, then = number(found.get("fp32")), number(found.get("bf16"))
        times.append(now / then if now and then else 0.0)
    slowest = min(times, default=0.0)
    return ("bf16", slowest) if slowest >= _WORTHWHILE else None


def _workers(figures: Figures) -> int:
    return int(figures.start.get("world_size") or len(figures.ranks))


def host(figures: Figures) -> Cause | None:
    """Calling operators, whatever they compute."""
    trace, ranks = figures.trace, figures.ranks
    operators = number(trace.get("operators"))
    each = [x for r in ranks if (x := number(r.said.get("tracing", {}).get("operator_seconds"))) is not None]
    if not operators or not each:
        return None
    computing = figures.computing + figures.parts.get("optimizer", 0.0)
    calling = operators * sum(each) / len(each)
    device = number(trace.get("device_seconds")) or 0.0
    seconds = min(calling, computing)
    evidence = [
        f"{words.rate(operators)} operators a step; to call one takes {spent(sum(each) / len(each))} here, whatever it "
        f"computes: {spent(calling)} of the {spent(computing)} that forward, backward and the optimizer take"
    ]
    if device > 0:
        if device >= _BUSY * computing:
            return None
        seconds = min(seconds, computing - device)
        evidence.append(f"the device is busy for {spent(device)} of them")
    change, expected, why = _host_change(figures, seconds)
    return Cause("host", seconds, seconds / figures.seconds, tuple(evidence), change, expected, why)


def _host_change(figures: Figures, seconds: float) -> tuple[str, float, str]:
    planned = figures.planned
    batch, micro = int(planned.get("batch") or 1), int(planned.get("micro_batch") or 1)
    share = max(1, batch // max(1, int(planned.get("shares") or 1)))
    pieces = -(-share // micro)
    if pieces > 1:
        return (
            f"train.micro_batch={share}",
            figures.seconds - seconds * (1 - 1 / pieces),
            f"the same operators once in a step instead of {pieces} times",
        )
    return (
        f"train.batch={2 * batch}",
        figures.seconds - seconds / 2,
        "as many operators for twice as many samples",
    )
