"""Every layout against unmodified transformers in a process of its own: loss, every gradient, and 50 steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, blueprint
from layouts import Case, Result, documents, run_case, run_cases
from safetensors.torch import load_file
from torch import Tensor

from ranks import run_ranks

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


def _cases() -> dict[tuple[int, bool], list[Case]]:
    """By number of ranks, and whether it is left to the long suite."""
    cases: dict[tuple[int, bool], list[Case]] = {}

    def add(ranks: int, found: list[Case], slow: bool = False) -> None:
        cases.setdefault((ranks, slow), []).extend(found)

    for family in FAMILIES:
        add(2, [Case(family, layout) for layout in TWO])
        add(8, [Case(family, EIGHT[0])], slow=True)
    add(1, [Case("llama", {}, how=how) for how in RECOMPUTED])
    add(2, [Case("llama", layout) for layout in (TWO_MORE[0], TWO_MORE[3])])
    add(2, [Case("llama", layout) for layout in TWO_MORE[1:3]], slow=True)
    add(2, [Case("llama", {"tensor": 2}, how=how) for how in RECOMPUTED], slow=True)
    add(2, [Case("gpt2", {"pipeline": 2}, how={"recompute": "full"})])
    add(2, [Case("llama", {"shard": 2}, micro_batch=3)], slow=True)
    add(2, [Case("llama", {"pipeline": 2}, micro_batch=3)])
    add(4, [Case("llama", layout) for layout in FOUR[3:7]])
    add(4, [Case("llama", layout) for layout in FOUR], slow=True)
    add(4, [Case("gpt2", {"shard": 2, "tensor": 2}), Case("bert", {"pipeline": 2, "tensor": 2})])
    add(8, [Case("llama", EIGHT[0])])
    add(8, [Case("llama", layout) for layout in EIGHT[1:]], slow=True)
    # In double precision only those whose norms do not work in single precision whatever they are given.
    add(2, [Case("gpt2", layout, dtype=torch.float64) for layout in ({"shard": 2}, {"tensor": 2})])
    add(4, [Case("bert", {"context": 2, "tensor": 2}, dtype=torch.float64)], slow=True)
    add(2, [Case("llama", {"tensor": 2}, steps=STEPS)])
    add(2, [Case("llama", layout, steps=STEPS) for layout in TWO if "tensor" not in layout], slow=True)
    add(4, [Case("gpt2", {"shard": 2, "tensor": 2}, steps=STEPS)], slow=True)
    add(8, [Case("qwen3", {"pipeline": 2, "shard": 2, "tensor": 2}, steps=STEPS)], slow=True)
    return cases


CASES = _cases()


class Oracle:
    """Losses and gradients by (family, dtype), computed once, and results of cases by world size."""

    def __init__(self, directory: Path) -> None:
        self._results: dict[tuple[int, bool], list[list[Result]] | Exception] = {}
        jobs = []
        for family in FAMILIES:
            model = directory / family
            blueprint(family).build().save_pretrained(model)
            trained = any(case.steps and case.family == family for cases in CASES.values() for case in cases)
            for dtype in ("float32", "float64") if family in ("gpt2", "bert") else ("float32",):
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

    def results(self, group: tuple[int, bool], case: Case) -> list[Result]:
        """Of every rank."""
        if group not in self._results:
            try:
                self._results[group] = run_ranks(group[0], run_cases, CASES[group], timeout_seconds=280)
            except Exception as error:  # not again for every case
                self._results[group] = error
        results, number = self._results[group], CASES[group].index(case)
        if isinstance(results, Exception):
            raise results
        return [rank[number] for rank in results]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"))


ALL = [
    pytest.param(group, case, id=f"{group[0]}-{case}-{number}", marks=[pytest.mark.slow] if group[1] else [])
    for group, cases in CASES.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize(("group", "case"), ALL)
def test_the_loss_and_every_gradient_are_those_of_one_device(
    oracle: Oracle, group: tuple[int, bool], case: Case
) -> None:
    losses, gradients = oracle.expected(case)
    tolerance = 1e-5 if case.dtype == torch.float32 else 1e-12
    norm = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    for result in oracle.results(group, case):
        assert result.losses[0] == pytest.approx(losses[0], rel=tolerance)
        assert result.norm == pytest.approx(norm, rel=tolerance)
        assert result.gradients.keys() == gradients.keys()
        for name, expected in gradients.items():
            # Some gradients are zero but for rounding (BERT's key biases): no error is relative to those.
            scale = max(float(expected.norm()), 1e-3 * norm)
            assert float((result.gradients[name] - expected).norm()) <= tolerance * scale, name


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("layout", [*TWO, *TWO_MORE], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_on_accelerators(oracle: Oracle, family: str, layout: dict[str, Any]) -> None:
    case = Case(family, layout, accelerator=True)
    losses, gradients = oracle.expected(case)
    norm = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    for result in run_ranks(2, run_case, case, backend="cpu:gloo,cuda:nccl"):
        assert result.losses[0] == pytest.approx(losses[0], rel=1e-4)
        assert result.norm == pytest.approx(norm, rel=1e-3)
        for name, expected in gradients.items():
            scale = max(float(expected.norm()), 1e-3 * norm)
            assert float((result.gradients[name] - expected).norm()) <= 1e-3 * scale, name


@pytest.mark.parametrize(("group", "case"), [entry for entry in ALL if entry.values[1].steps])
def test_the_curve_is_that_of_one_device(oracle: Oracle, group: tuple[int, bool], case: Case) -> None:
    losses, _ = oracle.expected(case)
    assert losses[-1] < 0.8 * losses[0]  # it learns: a curve that stands still would agree with any
    for result in oracle.results(group, case):
        assert result.losses == pytest.approx(losses, rel=1e-3)
