"""Keeping tensors elsewhere until they are needed.

Of an accelerator's tensors elsewhere is the host's memory. Of a CPU's it is files that are mapped into memory: the
kernel writes pages out when memory is short and reads them back when they are touched, so nothing has to be moved
by hand and nothing but time is lost. The files have no name, so they vanish with the process.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tutti.core.rundir import unwritable
from tutti.hardware.allocator import give_back_what_is_freed
from tutti.sync.policy import local_part, placed_like

#: Smaller tensors stay where they are: a file costs a page and a system call.
_WORTH_A_FILE_BYTES = 1 << 16
#: What each kind of optimizer keeps in the shape of its parameter; others keep nothing that is worth a file.
_WHOLE = {"AdamW": ("exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


class MappedFiles:
    """Memory in files of `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        give_back_what_is_freed()

    def empty_like(self, tensor: Tensor) -> Tensor:
        """A CPU tensor of the shape and dtype of `tensor` (on any device), of zeros, in a file if it is worth one."""
        if tensor.numel() * tensor.element_size() < _WORTH_A_FILE_BYTES:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        handle, name = tempfile.mkstemp(dir=self._directory)
        try:  # a full disk is an error here, a crash when written to
            os.posix_fallocate(handle, 0, tensor.numel() * tensor.element_size())
        except OSError as error:
            Path(name).unlink()
            raise unwritable(self._directory, error) from error
        finally:
            os.close(handle)
        mapped = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        Path(name).unlink()
        return mapped.view(tensor.shape)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """`tensor`, in a file."""
        return self.empty_like(tensor).copy_(tensor)


def keep_gradients(parameters: Iterable[nn.Parameter], files: MappedFiles) -> None:
    """Move each gradient into a file as soon as backward has made it; FSDP's are pieces and stay."""

    def move(parameter: Tensor, place: list[Tensor]) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if not place:
            place.append(files.empty_like(gradient))
        if gradient.data_ptr() != place[0].data_ptr():
            parameter.grad = place[0].copy_(gradient)

    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                functools.partial(move, place=[])
            )


@torch.no_grad()
def keep_optimizer_state(optimizers: Sequence[torch.optim.Optimizer], files: MappedFiles) -> None:
    """Let every state that has the shape of its parameter lie in files."""
    for optimizer in optimizers:
        names = _WHOLE.get(type(optimizer).__name__, ())
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if names):
            state = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.AdamW):
                state["step"] = torch.tensor(0.0)
            for name in names:
                state[name] = placed_like(files.empty_like(local_part(parameter)), parameter)


def keep_activations(blocks: Sequence[nn.Module], device: torch.device, files: MappedFiles | None) -> None:
    """What backward will want of `blocks` is kept elsewhere: on the host, or (CPU) in `files`."""

    def elsewhere() -> AbstractContextManager[Any]:
        if device.type != "cpu":
            return torch.autograd.graph.save_on_cpu(pin_memory=True)
        assert files is not None
        return torch.autograd.graph.saved_tensors_hooks(functools.partial(_into_file, files), _as_it_is)

    for block in blocks:
        block.forward = functools.partial(_call_within, block.forward, elsewhere)


def _call_within(
    forward: Callable[..., Any], around: Callable[[], AbstractContextManager[Any]], *inputs: Any, **named: Any
) -> Any:
    with around():
        return forward(*inputs, **named)


def _into_file(files: MappedFiles, tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad):
        return tensor
    large = tensor.numel() * tensor.element_size() >= _WORTH_A_FILE_BYTES
    return files.copy_of(tensor.detach()) if large else tensor


def _as_it_is(kept: Tensor) -> Tensor:
    return kept
