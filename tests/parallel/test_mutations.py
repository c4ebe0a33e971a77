"""Every exchange between ranks is needed: with any one left out the result is wrong, and this suite notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from layouts import Case, Result, run_case
from torch import Tensor

from ranks import run_ranks
from tutti.core import TuttiError
from tutti.parallel import collectives, split, vocabulary


def _alone_gather(piece: Tensor, dimension: int, group: Any) -> Tensor:
    return torch.cat([piece] * group.size(), dimension)


def _alone_reduce_scatter(summand: Tensor, dimension: int, group: Any) -> Tensor:
    return summand.chunk(group.size(), dimension)[group.rank()].contiguous()


def _alone_all_reduce(summand: Tensor, group: Any) -> Tensor:
    return summand.clone()


def _alone_all_to_all(piece: Tensor, whole_now: int, whole_then: int, group: Any) -> Tensor:
    return torch.cat([piece.chunk(group.size(), whole_now)[group.rank()]] * group.size(), whole_then)


@contextmanager
def no_exchange() -> Iterator[None]:
    """Nobody says anything to anybody, but shapes are as if."""
    with (
        patch.object(collectives, "_all_gather", _alone_gather),
        patch.object(collectives, "_reduce_scatter", _alone_reduce_scatter),
        patch.object(collectives, "_all_reduce", _alone_all_reduce),
        patch.object(collectives, "_all_to_all", _alone_all_to_all),
        patch.object(dist, "all_reduce", lambda *_, **__: None),
    ):
        yield


def _silent(original: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        with no_exchange():
            return original(*arguments)

    return called


TENSOR, CONTEXT, PIPELINE = {"tensor": 2}, {"context": 2}, {"pipeline": 2}
#: (where, what, in which layout it is used)
SITES: list[tuple[Any, str, dict[str, int]]] = [
    (collectives._Gather, "forward", TENSOR),
    (collectives._Gather, "backward", TENSOR),
    (collectives._Scatter, "forward", TENSOR),
    (collectives._Scatter, "backward", TENSOR),
    (collectives._Join, "forward", TENSOR),
    (collectives._Cut, "backward", TENSOR),
    (collectives._Share, "backward", TENSOR),
    (collectives._Total, "forward", TENSOR),
    (collectives._Swap, "forward", CONTEXT),
    (collectives._Swap, "backward", CONTEXT),
    (vocabulary, "_over_ranks", TENSOR),
    (vocabulary, "_over_all_words", TENSOR),
    (split, "_add_up", TENSOR),  # what norms see a piece of
    (split, "_add_up", PIPELINE),  # the embedding that is also the head
    (split, "_total_over", TENSOR),  # the norm of the gradient
]


def run_mutants(rank: int) -> list[Result | str]:
    """The result without each of the exchanges; what it died of, if it did."""
    found: list[Result | str] = []
    for where, what, layout in SITES:
        original = getattr(where, what)
        mutant = _silent(original)
        if where is vocabulary and what == "_over_ranks":
            mutant = _own_only
        changed = staticmethod(mutant) if isinstance(where, type) else mutant
        with patch.object(where, what, changed):
            try:
                found.append(run_case(rank, Case("llama", layout)))
            except (RuntimeError, TuttiError) as error:
                found.append(f"{type(error).__name__}: {error}")
    return [*found, *(run_case(rank, Case("llama", layout)) for layout in (TENSOR, CONTEXT, PIPELINE))]


def _own_only(own: Tensor, group: Any) -> Tensor:
    return own


def _differs(one: Result, other: Result) -> bool:
    if abs(one.losses[0] - other.losses[0]) > 1e-5 * other.losses[0]:
        return True
    if abs(one.norm - other.norm) > 1e-5 * other.norm:
        return True
    return any(
        float((one.gradients[name] - whole).norm()) > 1e-5 * max(float(whole.norm()), 1e-3 * other.norm)
        for name, whole in other.gradients.items()
    )


@pytest.fixture(scope="module")
def results() -> list[list[Result | str]]:
    return run_ranks(2, run_mutants, timeout_seconds=240)


NAMES = [f"{getattr(where, '__name__', where).rpartition('.')[2]}.{what}-{next(iter(layout))}"
         for where, what, layout in SITES]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SITES)), ids=NAMES)
def test_without_it_the_result_is_wrong(results: list[list[Result | str]], number: int) -> None:
    whole = [TENSOR, CONTEXT, PIPELINE].index(SITES[number][2])
    noticed = []
    for rank in results:
        mutant, sound = rank[number], rank[len(SITES) + whole]
        assert isinstance(sound, Result)
        noticed.append(isinstance(mutant, str) or _differs(mutant, sound))
    assert any(noticed)


def test_every_exchange_is_listed() -> None:
    """A new function of `collectives`, or a new call of torch.distributed in this room, belongs in `SITES`."""
    functions = {
        (name, side)
        for name, kind in vars(collectives).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.autograd.Function)
        and kind.__module__ == collectives.__name__
        for side in ("forward", "backward")
    }
    silent = {("_Join", "backward"), ("_Cut", "forward"), ("_Share", "forward"), ("_Total", "backward")}
    listed = {(where.__name__, what) for where, what, _ in SITES if isinstance(where, type)}
    assert functions - silent == listed
