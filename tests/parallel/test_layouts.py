"""Every layout against unmodified transformers in a process of its own: loss, every gradient, and 50 steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, blueprint
from layouts import Case, Result, documents, run_cases
from safetensors.torch import load_file
from torch import Tensor

from ranks import run_ranks

pytestmark = pytest.mark.distributed
STEPS = 50

TWO = [{"shard": 2}, {"tensor": 2}, {"pipeline": 2}, {"context": 2}]
TWO_MORE = [
    {"shard": 2, "zero": 1},
    {"shard": 2, "zero": 2},
    {"pipeline": 2, "schedule": "gpipe"},
    {"pipeline": 2, "schedule": "interleaved"},
]
FOUR = [
    {"tensor": 4},
    {"context": 4},
    {"pipeline": 4},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "context": 2},
    {"shard": 2, "pipeline": 2},
    {"pipeline": 2, "tensor": 2},
    {"context": 2, "tensor": 2},
    {"pipeline": 2, "context": 2},
    {"pipeline": 2, "shard": 2, "schedule": "interleaved"},
    {"pipeline": 2},  # two replicas
    {"tensor": 2},
    {"shard": 2, "zero": 1},
]
EIGHT = [
    {"pipeline": 2, "shard": 2, "tensor": 2},
    {"shard": 2, "context": 2, "tensor": 2},
    {"pipeline": 2, "context": 2, "tensor": 2},
    {"pipeline": 2, "tensor": 2},  # two replicas
]
RECOMPUTED = [{"recompute": "full"}, {"recompute": "selective"}]


def _cases() -> dict[int, list[Case]]:
    by_size: dict[int, list[Case]] = {1: [], 2: [], 4: [], 8: []}
    for family in FAMILIES:
        by_size[2] += [Case(family, layout) for layout in TWO]
    by_size[1] += [Case("llama", {}, how=how) for how in RECOMPUTED]
    by_size[2] += [Case("llama", layout) for layout in TWO_MORE]
    by_size[2] += [Case("llama", {"tensor": 2}, how=how) for how in RECOMPUTED]
    by_size[2] += [Case("qwen3", {"context": 2}, how={"recompute": "selective"})]
    by_size[2] += [Case("gpt2", {"pipeline": 2}, how={"recompute": "full"})]
    by_size[2] += [Case("llama", {"shard": 2}, micro_batch=3), Case("llama", {"pipeline": 2}, micro_batch=3)]
    by_size[4] += [Case("llama", layout) for layout in FOUR]
    by_size[4] += [Case("gpt2", {"shard": 2, "tensor": 2}), Case("bert", {"pipeline": 2, "tensor": 2})]
    by_size[8] += [Case("llama", layout) for layout in EIGHT]
    by_size[8] += [Case(family, EIGHT[0]) for family in FAMILIES if family != "llama"]
    # In double precision only those whose norms do not work in single precision whatever they are given.
    by_size[2] += [Case("gpt2", layout, dtype=torch.float64) for layout in ({"shard": 2}, {"tensor": 2})]
    by_size[4] += [Case("bert", {"context": 2, "tensor": 2}, dtype=torch.float64)]
    by_size[2] += [Case("llama", layout, steps=STEPS) for layout in TWO]
    by_size[4] += [Case("gpt2", {"shard": 2, "tensor": 2}, steps=STEPS)]
    by_size[8] += [Case("qwen3", {"pipeline": 2, "shard": 2, "tensor": 2}, steps=STEPS)]
    return by_size


CASES = _cases()


class Oracle:
    """Losses and gradients by (family, dtype), computed once, and results of cases by world size."""

    def __init__(self, directory: Path) -> None:
        self._results: dict[int, list[list[Result]] | Exception] = {}
        jobs = []
        for family in FAMILIES:
            model = directory / family
            blueprint(family).build().save_pretrained(model)
            trained = any(case.steps and case.family == family for cases in CASES.values() for case in cases)
            for dtype in ("float32", "float64"):
                out = str(directory / f"{family}.{dtype}")
                jobs.append({"model": str(model), "documents": documents(), "out": out, "dtype": dtype,
                             "steps": STEPS if trained and dtype == "float32" else 0})  # fmt: skip
        (directory / "jobs.json").write_text(json.dumps(jobs))
        command = [sys.executable, str(Path(__file__).with_name("plain.py")), str(directory / "jobs.json")]
        subprocess.run(command, check=True, capture_output=True)
        self._directory = directory

    def expected(self, case: Case) -> tuple[list[float], dict[str, Tensor]]:
        found = load_file(self._directory / f"{case.family}.{str(case.dtype).removeprefix('torch.')}")
        return found.pop("losses").tolist(), found

    def results(self, size: int, case: Case) -> list[Result]:
        """Of every rank."""
        if size not in self._results:
            try:
                self._results[size] = run_ranks(size, run_cases, CASES[size], timeout_seconds=280)
            except Exception as error:  # not again for every case
                self._results[size] = error
        results, number = self._results[size], CASES[size].index(case)
        if isinstance(results, Exception):
            raise results
        return [rank[number] for rank in results]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"))


ALL = [pytest.param(size, case, id=f"{size}-{case}-{number}") for size, cases in CASES.items()
       for number, case in enumerate(cases)]  # fmt: skip


@pytest.mark.parametrize(("size", "case"), ALL)
def test_the_loss_and_every_gradient_are_those_of_one_device(oracle: Oracle, size: int, case: Case) -> None:
    losses, gradients = oracle.expected(case)
    tolerance = 1e-5 if case.dtype == torch.float32 else 1e-12
    norm = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    for result in oracle.results(size, case):
        assert result.losses[0] == pytest.approx(losses[0], rel=tolerance)
        assert result.norm == pytest.approx(norm, rel=tolerance)
        assert result.gradients.keys() == gradients.keys()
        for name, expected in gradients.items():
            # Some gradients are zero but for rounding (BERT's key biases): no error is relative to those.
            scale = max(float(expected.norm()), 1e-3 * norm)
            assert float((result.gradients[name] - expected).norm()) <= tolerance * scale, name


@pytest.mark.parametrize(("size", "case"), [entry for entry in ALL if entry.values[1].steps])
def test_the_curve_is_that_of_one_device(oracle: Oracle, size: int, case: Case) -> None:
    losses, _ = oracle.expected(case)
    assert losses[-1] < 0.8 * losses[0]  # it learns: a curve that stands still would agree with any
    for result in oracle.results(size, case):
        assert result.losses == pytest.approx(losses, rel=1e-3)
