"""The run in words and tables: `report.md`, for a person who was not there."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tutti.core import RunDirectory
from tutti.core.address import without_secrets
from tutti.observe import words
from tutti.observe.happened import happenings
from tutti.observe.history import History
from tutti.observe.question import first_question
from tutti.observe.result import Commands, next_moves, result_rows
from tutti.observe.tail import Event, number

_STATES = {
    "finished": "It finished.",
    "interrupted": "It was interrupted and can be resumed.",
    "failed": "It failed; what to do about it stands below.",
    "running": "It was still running when this page was written.",
}


def write_page(run: Path, history: History, figures: dict[str, Any], *, curve: bool) -> str:
    """The whole page as Markdown."""
    sections = [
        f"# {run.name}",
        _lead(run, figures),
        f"![Loss over steps]({RunDirectory(run).curve.name})" if curve else "",
        _section("Result", _result(figures)),
        _section("Samples", _samples(history.of("sample_text"))),
        _section("Validation", _validations(history.validations)),
        _section("Gradient noise", _noise(figures["gradient_noise"])),
        _section("What was chosen, and why", _choices(figures["choices"])),
        _section("What happened", _happened(history)),
        _section("Where the time went", _time(figures)),
        _section("How to go on", _go_on(run, figures)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A Markdown table; `align` has one of `l` and `r` for each column."""
    rule = ["---:" if side == "r" else "---" for side in align]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(head), rule, *escaped])


def read_config(run: Path) -> dict[str, Any]:
    """The run's resolved configuration as plain values (empty when it cannot be read)."""
    try:
        config = yaml.safe_load(RunDirectory(run).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _lead(run: Path, figures: dict[str, Any]) -> str:
    config = read_config(run)
    source = (config.get("data") or {}).get("source")
    given = [part for part in (source if isinstance(source, list) else [source]) if part]
    source = ", ".join(f"`{without_secrets(str(part))}`" for part in given)
    model = (
        f"A model of {words.count(figures['parameters'])} parameters" if figures["parameters"] else "A model"
    )
    on = f" on {source}" if source else ""
    world, policy = figures["world_size"], figures["policy"]
    workers = f", on {words.plural(int(world), 'worker')}" if world else ""
    joined = f" joined by `{policy}`" if policy and world and int(world) > 1 else ""
    precision = f", in {figures['precision']}" if figures["precision"] else ""
    lines = [
        f"{model} was trained{on} for {words.count(figures['tokens'])} tokens "
        f"({words.plural(int(figures['steps']), 'step')}){workers}{joined}{precision}. "
        f"{_STATES[figures['state']]}",
        f"Begun {words.date(figures['started'])}; {words.seconds(figures['wall_seconds'])} of wall time."
        if figures["started"]
        else "",
    ]
    return "\n".join(line for line in lines if line)


def _result(figures: dict[str, Any]) -> str:
    rows = [(name, f"**{value}**" if name == "State" else value) for name, value in result_rows(figures)]
    return markdown_table(("", ""), rows, "ll")


def last_samples(events: list[Event]) -> list[dict[str, Any]]:
    """`step` and `text`, prompt included, of the last continuation of every prompt, at most eight."""
    last: dict[str, Event] = {str(event.get("prompt")): event for event in events}
    found = []
    for prompt, event in list(last.items())[-8:]:
        text = str(event.get("text", ""))
        whole = text if text.startswith(prompt) else prompt + text
        shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in whole)
        found.append({"step": int(event.get("step") or 0), "text": shown.rstrip()})
    return found


def _samples(events: list[Event]) -> str:
    samples = last_samples(events)
    blocks = []
    for sample in samples:
        ticks = max((len(run) for run in re.findall(r"`+", sample["text"])), default=0)
        fence = "`" * max(3, ticks + 1)  # the model may have learnt to write Markdown
        blocks.append(f"{fence}text\n{sample['text']}\n{fence}")
    if not blocks:
        return ""
    said = f"after step {max(sample['step'] for sample in samples):,}"
    return f"What the model writes {said}, prompt included:\n\n" + "\n\n".join(blocks)


def _validations(events: list[Event]) -> str:
    if not events:
        return ""
    losses = [number(event.get("loss")) or math.nan for event in events]
    best = min((loss for loss in losses if math.isfinite(loss)), default=None)
    is_text = any(event.get("bits_per_byte") is not None for event in events)
    names = list(events[-1].get("metrics") or {})
    head = ("step", "loss", *(("bits per byte", "perplexity") if is_text else ()), *names, "took")
    rows = []
    for event, loss in zip(events, losses, strict=True):
        shown = words.figure(loss)
        row = [f"{int(event.get('step') or 0):,}", f"**{shown}**" if loss == best else shown]
        if is_text:
            row.append(words.figure(number(event.get("bits_per_byte"))))
            row.append(words.figure(math.exp(loss), 2) if math.isfinite(loss) and loss < 50 else "–")
        metrics = event.get("metrics") or {}
        row += [words.figure(number(metrics.get(name))) for name in names]
        rows.append([*row, words.seconds(number(event.get("seconds")))])
    return markdown_table(head, rows, "r" * len(head))


def _noise(noise: dict[str, Any] | None) -> str:
    if noise is None:
        return ""
    rows = [
        (f"{step:,}", "not to be told" if scale is None else f"{scale:,.0f}")
        for step, scale in noise["course"]
    ]
    said = f"Samples from which on a larger batch teaches little more, measured {noise['measured']} times:"
    return f"{said}\n\n{markdown_table(('step', 'noise scale'), rows, 'rr')}"


def _choices(choices: Sequence[object]) -> str:
    return "\n".join(f"- {choice}" for choice in choices)


def _happened(history: History) -> str:
    lines = happenings(history)
    if len(lines) > 60:
        left_out = len(lines) - 59
        lines = [*lines[:30], f"- … {left_out} more stand in `events/` …", *lines[-29:]]
    return "\n".join(lines)


def _time(figures: dict[str, Any]) -> str:
    wall = figures["wall_seconds"]
    if not wall:
        return ""
    rows = [
        (what, words.seconds(spent), words.percent(spent / wall))
        for what, spent in figures["time"].items()
        if spent > 0
    ]
    return markdown_table(("", "time", "share"), rows, "lrr")


def _go_on(run: Path, figures: dict[str, Any]) -> str:
    config = read_config(run)
    if (config.get("model") or {}).get("python"):
        return (
            f"The model is your own: in your program, `tutti.fit(…, name={run.name!r}, resume=True)` goes on from the "
            "last checkpoint."
        )
    moves = moves_of(run, figures, config)
    width = max(len(command) for command, _ in moves)
    lines = "\n".join(f"{command:<{width}}   # {purpose}" for command, purpose in moves)
    return f"In the directory where the run was started:\n\n```sh\n{lines}\n```"


def moves_of(run: Path, figures: Mapping[str, Any], config: dict[str, Any]) -> list[tuple[str, str]]:
    """Commands, each with its purpose, as they can be typed in the directory where the run was started."""
    place = Path(str(config.get("runs", run.parent.name))) / run.name
    commands = Commands("tutti", f"tutti train {shlex.quote(str(place / 'config.yaml'))}")
    return next_moves(place, figures, first_question(config), commands)
