"""What a smaller model costs and gains, as one line of a table beside the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutti.compress.timing import Timing


@dataclass(frozen=True)
class Line:
    """`size`: bytes of the weights on disk; `quality`: metrics on what was kept aside."""

    recipe: str
    quality: dict[str, float]
    size: int
    timing: Timing

    def against(self, before: Line, metric: str) -> tuple[float, float, float]:
        """How many times smaller and (at batch 1) faster than `before`, and which share of the metric is lost."""
        worse = 1 - self.quality[metric] / before.quality[metric] if before.quality[metric] else 0.0
        return before.size / self.size, before.timing.one / self.timing.one, worse

    def as_json(self, before: Line, metric: str) -> dict[str, Any]:
        """Everything, with units in the names."""
        smaller, faster, worse = self.against(before, metric)
        return {
            "recipe": self.recipe,
            "quality": {
                name: value if math.isfinite(value) else None for name, value in self.quality.items()
            },
            "worse": worse,
            "weight_bytes": self.size,
            "memory_bytes": self.timing.memory,
            "seconds_batch_1": self.timing.one,
            "seconds_batch_32": self.timing.many,
            "rows_per_second": self.timing.rows_per_second,
            "times_smaller": smaller,
            "times_faster_batch_1": faster,
            "times_faster_batch_32": before.timing.many / self.timing.many,
        }


def as_markdown(report: Mapping[str, Any]) -> str:
    """The whole table, for people."""
    lines = report["lines"]
    onnx = next((line for line in lines if line["recipe"] == "onnx"), None)
    head = [
        *("recipe", report["metric"], "lost", "MB", "smaller", "memory, MB", "ms, batch 1", "ms, batch 32"),
        *("rows/s", "faster, batch 1", "batch 32"),
        *(("than onnx, batch 1", "batch 32") if onnx else ()),
    ]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        name = f"**{line['recipe']}**" if line["recipe"] == report["kept"] else line["recipe"]
        row = [
            name,
            f"{line['quality'][report['metric']]:.4f}",
            f"{line['worse']:+.2%}" if line is not lines[0] else "",
            f"{line['weight_bytes'] / 1e6:.1f}",
            f"{line['times_smaller']:.2f}x",
            f"{line['memory_bytes'] / 1e6:.0f}",
            f"{line['seconds_batch_1'] * 1e3:.2f}",
            f"{line['seconds_batch_32'] * 1e3:.1f}",
            f"{line['rows_per_second']:.0f}",
            f"{line['times_faster_batch_1']:.2f}x",
            f"{line['times_faster_batch_32']:.2f}x",
        ]
        if onnx:
            row += [f"{onnx[f'seconds_batch_{n}'] / line[f'seconds_batch_{n}']:.2f}x" for n in (1, 32)]
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    kept = f"Kept: {report['kept']}" if report["kept"] else "None meets the target; none is kept"
    return (
        f"# {report['run']}, made smaller\n\n"
        f"Target: {report['target']}. {kept}.\n\n{table}\n\n"
        f"{report['metric']}: of what was read back from disk, on the {report['examples']} {report['part']} examples, "
        f"which also decided what is kept. Times: medians, one core, all models in turn, texts already in tokens. "
        f"Memory: what the process took for the model alone.\n"
    )
