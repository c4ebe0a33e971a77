"""Figures as people read them."""

from __future__ import annotations

import math
import time


def count(value: float | None) -> str:
    """950 → `950`, 15_120_000 → `15.1M`."""
    if value is None:
        return "–"
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        # From what would be rounded to 1000 of the next smaller unit on; up to 10,000 every digit is said.
        if abs(value) >= (1e4 if letter == "K" else 0.9995 * unit):
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """1234.5 → `1,235`."""
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes in powers of ten: 1_500_000 → `1.5 MB`."""
    if value is None:
        return "–"
    for unit, letters in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if abs(value) >= 0.9995 * unit:  # what would be rounded to 1000 of the next smaller unit
            return f"{value / unit:.3g} {letters}"
    return f"{value:.0f} bytes"


def seconds(value: float | None) -> str:
    """0.034 → `34 ms`, 75 → `1 min 15 s`, 7300 → `2 h 2 min`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(value: float | None) -> str:
    """Seconds as a clock for a narrow bar: `4:05`, `1:02:09`."""
    if value is None or not math.isfinite(value):
        return "-:--"
    whole = round(value)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def percent(value: float | None) -> str:
    """0.456 → `45.6 %`."""
    return "–" if value is None else f"{value * 100:.1f} %"


def figure(value: float | None, digits: int = 4) -> str:
    """A loss: a fixed number of decimals."""
    return "–" if value is None else f"{value:.{digits}f}"


def metrics(values: object) -> str:
    """Metrics by name: `accuracy 0.9410, macro_f1 0.9395`."""
    found = values.items() if isinstance(values, dict) else ()
    return ", ".join(f"{name} {figure(value)}" for name, value in found if isinstance(value, int | float))


def date(unix_seconds: float) -> str:
    """Local date and time of day."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_seconds))


def plural(number: int, noun: str) -> str:
    """`1 restart`, `3 restarts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def workers(world: int, replicas: object, layout: object, policy: str) -> str:
    """How the work is spread: `4 workers: 2 copies joined by allreduce, each over tensor 2`."""
    copies = int(replicas) if isinstance(replicas, int) else 1
    sizes = layout if isinstance(layout, dict) else {}
    split = ", ".join(f"{name} {size}" for name, size in sizes.items() if size != 1)
    if not split:
        return plural(world, "worker") + (f" joined by {policy}" if world > 1 else "")
    joined = (
        f"{copies} copies joined by {policy}, each over {split}" if copies > 1 else f"one copy over {split}"
    )
    return f"{plural(world, 'worker')}: {joined}"
