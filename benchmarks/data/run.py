"""How fast `tutti prepare` makes tokens of text, and in how much memory.

    make bench-data DATA=DIR                 (or: python -m benchmarks.data.run --data DIR --help)

DIR holds techdocs_en and gov_speeches_en, of which a corpus is made (`made.py`). All ways use the same tokenizer (BPE
of 16,384 entries, trained on it) on one core: `tokenizers` alone, in memory; `tutti prepare`, without and with near
duplicates; datatrove; `datasets.map`. Rates are bytes of text for each second of processor time, of all processes of a
way together, in turns, --rounds times, without what a way needs to start: other programs on the machine disturb that
less than time on the clock. Then
--large megabytes are prepared with near duplicates, and the memory of all its processes is watched (PSS: what they
share counts once). 0: leave that out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, describe_machine, machine_line, ratios, say_ratio, table, write_result
from benchmarks.data.contender import WAYS
from benchmarks.data.made import make
from tutti.data.tokenizer import save_tokenizer, train_bpe

HERE = Path(__file__).resolve().parent
_VOCABULARY = 16_384
_TRAINED_ON_BYTES = 8_000_000
_WATCH_SECONDS = 0.5
_OTHERS = ("datatrove", "datasets.map")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--large", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the large one")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "prepare")
    options = parser.parse_args()
    machine = describe_machine()
    make(options.data, options.work / "small", 1)
    folder = options.work / f"text-{options.megabytes}"
    files = make(options.data, folder, options.megabytes)
    tokenizer = options.work / "tokenizer"
    if not tokenizer.exists():
        texts = (json.loads(line)["text"] for line in files[0].read_text(encoding="utf-8").splitlines())
        save_tokenizer(train_bpe(_up_to(texts, _TRAINED_ON_BYTES), _VOCABULARY, exactly=False), tokenizer)
    size = sum(
        len(json.loads(line)["text"].encode()) for file in files for line in file.open(encoding="utf-8")
    )
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        ways = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        rounds.append({way: measure(way, folder, tokenizer, options.work / "run") for way in ways})
        report(options, machine, size, rounds, None)
    large = None
    if options.large:
        folder = options.work / f"text-{options.large}"
        make(options.data, folder, options.large)
        large = measure(
            "tutti, near duplicates", folder, tokenizer, options.work / "run", options.workers, watched=True
        )
    print(report(options, machine, size, rounds, large).read_text())


def _up_to(texts: Any, limit: int) -> Any:
    held = 0
    for text in texts:
        if held > limit:
            return
        held += len(text)
        yield text


def measure(
    way: str, folder: Path, tokenizer: Path, work: Path, workers: int = 1, *, watched: bool = False
) -> dict[str, Any]:
    """What `contender` prints; with `watched`, the most memory that its processes had together, too."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.data.contender",
        way,
        *map(str, (folder, tokenizer, work, workers)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    most: dict[str, float] = {"together": 0.0, "one": 0.0}
    watcher = threading.Thread(target=_watch, args=(process.pid, most), daemon=True)
    if watched:
        watcher.start()
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way} failed")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    print(way, json.dumps(found), flush=True)
    shutil.rmtree(work, ignore_errors=True)
    return found | ({"memory_bytes": most["together"], "memory_of_one_bytes": most["one"]} if watched else {})


def _watch(process: int, most: dict[str, float]) -> None:
    while True:
        try:
            main_one = psutil.Process(process)
            each = []
            for one in [main_one, *main_one.children(recursive=True)]:
                try:
                    each.append(one.memory_full_info().pss)
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        most["together"] = max(most["together"], sum(each))
        most["one"] = max([most["one"], *each])
        time.sleep(_WATCH_SECONDS)


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    size: int,
    rounds: list[dict[str, dict[str, Any]]],
    large: dict[str, Any] | None,
) -> Path:
    """Write what there is so far."""
    rates = {
        way: [one[way].get("encoded", size) / one[way]["processor_seconds"] / 1e6 for one in rounds]
        for way in WAYS
    }
    against = {way: ratios(rates[way], rates["raw"]) for way in WAYS if way != "raw"}
    fastest = max(_OTHERS, key=lambda way: statistics.median(rates[way]))
    rows = [
        [
            way,
            f"{statistics.median(rates[way]):.2f}",
            "" if way == "raw" else say_ratio(against[way]),
            f"{statistics.median(one[way]['start_seconds'] for one in rounds):.1f}",
        ]
        for way in WAYS
    ]
    lead = ratios(rates["tutti"], rates[fastest])
    page = (
        f"# Text to tokens\n\n{machine_line(machine)}\n\n{size / 1e6:.1f} MB of text, rounds: {len(rounds)}; "
        "MB for each second of processor time.\n\n"
        + table(["way", "MB per processor second", "÷ tokenizers alone", "processor seconds to start"], rows)
        + f"\n\n`tutti prepare` ÷ {fastest}, the faster of the others: {say_ratio(lead)}.\n"
    )
    if large is not None:
        page += (
            f"\n{large['bytes'] / 1e6:.0f} MB with near duplicates (index 32 MB) by {options.workers} processes: "
            f"{large['memory_bytes'] / 1e6:.0f} MB of memory at most for all processes together, "
            f"{large['memory_of_one_bytes'] / 1e6:.0f} MB for the largest; {large['seconds']:.0f} s, "
            f"{large['bytes'] / large['processor_seconds'] / 1e6:.2f} MB per processor second.\n"
        )
    data = {"machine": machine, "bytes": size, "rounds": rounds, "large": large, "lead": lead}
    return write_result(HERE / "results", "prepare", data, page)


if __name__ == "__main__":
    main()
