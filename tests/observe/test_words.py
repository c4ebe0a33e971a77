"""Figures for people."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tutti.observe import words

COUNTS = {
    9_999: "9,999",
    10_000: "10K",
    999_499: "999K",
    999_500: "1M",
    999_936: "1M",
    999_999_999: "1B",
    15_120_000: "15.1M",
    1_500_000_000_000: "1.5T",
}


def test_counts_never_read_a_thousand_of_the_smaller_unit() -> None:
    assert {number: words.count(number) for number in COUNTS} == COUNTS
    said = {words.count(unit * step // 1000) for unit in (10**6, 10**9, 10**12) for step in range(980, 1020)}
    assert all(re.fullmatch(r"\d{1,3}(\.\d+)?[KMBT]", one) for one in said), said


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_dashboard_counts_in_the_same_words(tmp_path: Path) -> None:
    script = Path(words.__file__).parent / "dashboard" / "static" / "words.js"
    module = tmp_path / "words.mjs"
    module.write_text(script.read_text() + f"console.log(JSON.stringify({list(COUNTS)}.map(count)))\n")
    done = subprocess.run(["node", module], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(COUNTS.values())


def test_sizes_never_read_a_thousand_of_the_smaller_unit() -> None:
    assert words.size(999.6e6) == "1 GB"
    assert words.size(998e6) == "998 MB"
    assert words.size(1500) == "1.5 KB"
    assert words.size(12) == "12 bytes"


def test_workers_are_told_with_what_joins_and_splits_them() -> None:
    assert words.workers(1, 1, {}, "allreduce") == "1 worker"
    assert words.workers(2, 2, {"shard": 1}, "diloco") == "2 workers joined by diloco"
    assert words.workers(2, 1, {"tensor": 2}, "allreduce") == "2 workers: one copy over tensor 2"
    said = words.workers(8, 2, {"pipeline": 2, "tensor": 2}, "diloco")
    assert said == "8 workers: 2 copies joined by diloco, each over pipeline 2, tensor 2"
