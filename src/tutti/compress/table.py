"""What a smaller model costs and gains, as one line of a table beside the model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tutti.compress.timing import Timing
from tutti.observe.figures import finite
from tutti.observe.words import figure


class Metric(NamedTuple):
    """What models are judged by."""

    name: str
    larger_is_better: bool = True

    def worse(self, quality: Mapping[str, float], before: Mapping[str, float]) -> float:
        """Which share of what it was is lost: accuracy of 0.9 → 0.81 is 10 % worse, and so is perplexity of 10 → 11."""
        if not before[self.name]:
            return 0.0
        share = quality[self.name] / before[self.name]
        return 1 - share if self.larger_is_better else share - 1


class Words(NamedTuple):
    """How times are called: of one row, of 32; what is counted a second; and what was timed, in a sentence."""

    one: str
    many: str
    per_second: str
    timed: str


@dataclass(frozen=True)
class Line:
    """`size`: bytes of the weights on disk; `quality`: metrics on what was kept aside."""

    recipe: str
    quality: dict[str, float]
    size: int
    timing: Timing

    def against(self, before: Line, metric: Metric) -> tuple[float, float, float]:
        """How many times smaller and (at batch 1) faster than `before`, and which share of the metric is lost."""
        worse = metric.worse(self.quality, before.quality)
        return before.size / self.size, before.timing.one / self.timing.one, worse

    def as_json(self, before: Line, metric: Metric, words: Words) -> dict[str, Any]:
        """Everything, with units in the names."""
        smaller, faster, worse = self.against(before, metric)
        return {
            "recipe": self.recipe,
            "quality": {name: finite(value) for name, value in self.quality.items()},
            "worse": finite(worse),
            "weight_bytes": self.size,
            "memory_bytes": self.timing.memory,
            "seconds_batch_1": self.timing.one,
            "seconds_batch_32": self.timing.many,
            f"{words.per_second}_per_second": self.timing.per_second,
            **({} if (read := self.timing.read) is None else {"prompt_tokens_per_second": 1 / read}),
            "times_smaller": smaller,
            "times_faster_batch_1": faster,
            "times_faster_batch_32": before.timing.many / self.timing.many,
        }


def as_markdown(report: Mapping[str, Any], words: Words) -> str:
    """The whole table, for people."""
    lines = report["lines"]
    reads = "prompt_tokens_per_second" in lines[0]
    onnx = next((line for line in lines if line["recipe"] == "onnx"), None)
    head = [
        *("recipe", report["metric"], "lost", "MB", "smaller", "memory, MB", words.one, words.many),
        *(f"{words.per_second}/s", *(("prompt tokens/s",) if reads else ()), "faster, batch 1", "batch 32"),
        *(("than onnx, batch 1", "batch 32") if onnx else ()),
    ]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        name = f"**{line['recipe']}**" if line["recipe"] == report["kept"] else line["recipe"]
        row = [
            name,
            figure(line["quality"][report["metric"]]),
            _lost(line["worse"]) if line is not lines[0] else "",
            f"{line['weight_bytes'] / 1e6:.1f}",
            f"{line['times_smaller']:.2f}x",
            f"{line['memory_bytes'] / 1e6:.0f}",
            f"{line['seconds_batch_1'] * 1e3:.2f}",
            f"{line['seconds_batch_32'] * 1e3:.1f}",
            f"{line[f'{words.per_second}_per_second']:.0f}",
            *((f"{line['prompt_tokens_per_second']:.0f}",) if reads else ()),
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
        f"{_listed('Rounded', report['rounded'])}{_listed('Left out', report['left_out'])}"
        f"{report['metric']}: of what was read back from disk, on {report['judged']}, which also decided what is kept. "
        f"Times: medians, one core, all models in turn{words.timed}. Memory: what the process took for the model "
        f"alone.\n"
    )


def _listed(title: str, said: Mapping[str, str]) -> str:
    """What is to be said of some recipes; nothing if there are none."""
    lines = [f"- {recipe}: {words}" for recipe, words in said.items()]
    return "\n".join([f"{title}:\n", *lines]) + "\n\n" if lines else ""


def _lost(worse: float | None) -> str:
    return figure(None) if worse is None else f"{worse:+.2%}"
