"""The seven exchanges of which every split is made, each with its own derivative.

| function        | forward                                | backward                                |
| --------------- | -------------------------------------- | --------------------------------------- |
| `gather`        | pieces → the whole                     | whole gradients are summed, cut again   |
| `scatter`       | wholes are summed, cut into pieces     | pieces of the gradient → the whole      |
| `join`          | pieces → the whole                     | this rank's piece of the gradient       |
| `cut`           | this rank's piece                      | pieces of the gradient → the whole      |
| `share`         | nothing                                | gradients are summed                    |
| `total`         | sum                                    | nothing                                 |
| `swap`          | pieces along one dimension → pieces    | the way back                            |
|                 | along another                          |                                         |

`gather` goes with `scatter` where each rank continues with another part of the work (its columns of a matrix);
`join` with `cut` where all continue alike. (f, g and their sequence-parallel kin in Megatron-LM: Shoeybi et al.,
arXiv 1909.08053; Korthikanti et al., arXiv 2205.05198. `swap` is DeepSpeed-Ulysses, arXiv 2309.14509.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.autograd import Function

Group = dist.ProcessGroup


def gather(piece: Tensor, dimension: int, group: Group) -> Tensor:
    """The whole of which every rank has a `piece` along `dimension`, each to go on with a part of the work."""
    return _apply(_Gather, piece, dimension, group)


def scatter(summand: Tensor, dimension: int, group: Group) -> Tensor:
    """This rank's piece along `dimension` of the sum of all ranks' `summand`s."""
    return _apply(_Scatter, summand, dimension, group)


def join(piece: Tensor, dimension: int, group: Group) -> Tensor:
    """The whole of which every rank has a `piece` along `dimension`, all to go on alike."""
    return _apply(_Join, piece, dimension, group)


def cut(whole: Tensor, dimension: int, group: Group) -> Tensor:
    """This rank's piece along `dimension` of a `whole` that all ranks have alike."""
    return _apply(_Cut, whole, dimension, group)


def share(whole: Tensor, group: Group) -> Tensor:
    """`whole`, which all ranks have alike, for each to go on with a part of the work."""
    return _apply(_Share, whole, group)


def total(summand: Tensor, group: Group) -> Tensor:
    """The sum of all ranks' `summand`s, all to go on alike."""
    return _apply(_Total, summand, group)


def swap(piece: Tensor, whole_now: int, whole_then: int, group: Group) -> Tensor:
    """From pieces along `whole_then`, each with all of `whole_now`, to pieces along `whole_now` with all of
    `whole_then`."""
    return _apply(_Swap, piece, whole_now, whole_then, group)


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor, dimension: int, group: Group) -> Tensor:
        ctx.how = dimension, group
        return _all_gather(piece, dimension, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _reduce_scatter(gradient, *ctx.how), None, None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, summand: Tensor, dimension: int, group: Group) -> Tensor:
        ctx.how = dimension, group
        return _reduce_scatter(summand, dimension, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _all_gather(gradient, *ctx.how), None, None


class _Join(Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor, dimension: int, group: Group) -> Tensor:
        ctx.how = dimension, group
        return _all_gather(piece, dimension, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _piece(gradient, *ctx.how), None, None


class _Cut(Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, dimension: int, group: Group) -> Tensor:
        ctx.how = dimension, group
        return _piece(whole, dimension, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _all_gather(gradient, *ctx.how), None, None


class _Share(Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _all_reduce(gradient, ctx.group), None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, summand: Tensor, group: Group) -> Tensor:
        return _all_reduce(summand, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Swap(Function):
    @staticmethod
    def forward(ctx: Any, piece: Tensor, whole_now: int, whole_then: int, group: Group) -> Tensor:
        ctx.how = whole_then, whole_now, group
        return _all_to_all(piece, whole_now, whole_then, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _all_to_all(gradient, *ctx.how), None, None, None


# What goes over the wire. Functional collectives, because torch.compile can see through them.


def _all_gather(piece: Tensor, dimension: int, group: Group) -> Tensor:
    return _wait(collectives.all_gather_single(piece.contiguous(), dimension, group))


def _reduce_scatter(summand: Tensor, dimension: int, group: Group) -> Tensor:
    return _wait(collectives.reduce_scatter_single(summand.contiguous(), "sum", dimension, group))


def _all_reduce(summand: Tensor, group: Group) -> Tensor:
    return _wait(collectives.all_reduce(summand.contiguous(), "sum", group))


def _all_to_all(piece: Tensor, whole_now: int, whole_then: int, group: Group) -> Tensor:
    """Cut along `whole_now`, send each rank its part, and lay what comes side by side along `whole_then`."""
    parts = torch.stack(piece.chunk(group.size(), whole_now))
    received = _wait(collectives.all_to_all_single(parts.flatten(0, 1).contiguous(), None, None, group))
    return torch.cat(received.view(parts.shape).unbind(), dim=whole_then)


def _piece(whole: Tensor, dimension: int, group: Group) -> Tensor:
    return whole.chunk(group.size(), dimension)[group.rank()].contiguous()


def _wait(result: Any) -> Tensor:
    done: Tensor = collectives.wait_tensor(result)  # type: ignore[no-untyped-call]
    return done
